"""Tensors of this network from megatron-core's form to transformers' and back: layers, q with k and v, gate with up.

Shapes: L layers, H hidden, F ffn, V padded vocabulary, N heads, G query groups, D head size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.network import LAYERS, QKV, layer_weights, outer_weights

_NUMBERED = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def renamed_outside(model: ModelConfig) -> dict[str, str]:
    """The name in an exported folder of each weight outside the layers."""
    return {weight.name: weight.huggingface[0] for weight in outer_weights(model)}


def renamed_in_layer(model: ModelConfig) -> dict[str, str]:
    """transformers' name, within a layer, of each weight that is one there too; not of those that are split."""
    return {weight.name: weight.huggingface[0] for weight in layer_weights(model) if len(weight.huggingface) == 1}


@dataclass(frozen=True)
class PlainWeights:
    """Full tensors by megatron-core name: outside the layers, and one mapping a layer."""

    outer: dict[str, torch.Tensor]
    layers: list[dict[str, torch.Tensor]]


def split_layers(weights: dict[str, torch.Tensor], num_layers: int) -> PlainWeights:
    """Sort plain tensors by layer, whether stacked along a first axis [L, ...] or numbered in the name.

    Raises:
        UserError: a stacked tensor has another number of layers, or a numbered layer is outside them.
    """
    outer: dict[str, torch.Tensor] = {}
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(num_layers)]
    for name, tensor in weights.items():
        # Transformer Engine's and mcore's own bookkeeping; no weight.
        if name.endswith("_extra_state"):
            continue
        if numbered := _NUMBERED.fullmatch(name):
            index = int(numbered[1])
            if index >= num_layers:
                raise UserError(f"weight {name!r}: model.num_layers is {num_layers}; export with the run's own config")
            layers[index][numbered[2]] = tensor
        elif name.startswith(LAYERS):
            if tensor.ndim == 0 or tensor.shape[0] != num_layers:
                raise UserError(
                    f"weight {name!r} has shape {list(tensor.shape)}, but model.num_layers is {num_layers}; "
                    "export with the run's own config"
                )
            for index in range(num_layers):
                layers[index][name.removeprefix(LAYERS)] = tensor[index]
        else:
            outer[name] = tensor
    return PlainWeights(outer, layers)


def split_qkv(weight: torch.Tensor, model: ModelConfig) -> dict[str, torch.Tensor]:
    """Megatron's [G * (N/G * D query, D key, D value), H] into q [N*D, H], k [G*D, H], v [G*D, H]."""
    groups, size = model.num_query_groups, model.kv_channels
    query_rows = model.num_attention_heads // groups * size
    if weight.shape[0] != groups * (query_rows + 2 * size):
        raise UserError(
            f"weight {QKV!r} has {weight.shape[0]} rows, but the model's heads make "
            f"{groups * (query_rows + 2 * size)}; export with the run's own config"
        )
    by_group = weight.reshape(groups, query_rows + 2 * size, weight.shape[1])
    parts = by_group.split([query_rows, size, size], dim=1)
    names = ("q_proj", "k_proj", "v_proj")
    return {
        f"self_attn.{name}.weight": part.reshape(-1, weight.shape[1]) for name, part in zip(names, parts, strict=True)
    }


def split_gate_and_up(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Megatron's gated first MLP matrix [2F, H], gate rows first, into gate [F, H] and up [F, H]."""
    gate, up = weight.chunk(2)
    return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}


def join_qkv(parts: dict[str, torch.Tensor], model: ModelConfig) -> torch.Tensor:
    """The inverse of `split_qkv`."""
    groups = model.num_query_groups
    names = ("q_proj", "k_proj", "v_proj")
    by_group = [parts[f"self_attn.{name}.weight"].reshape(groups, -1, model.hidden_size) for name in names]
    return torch.cat(by_group, dim=1).reshape(-1, model.hidden_size)


def join_gate_and_up(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The inverse of `split_gate_and_up`."""
    return torch.cat([parts["mlp.gate_proj.weight"], parts["mlp.up_proj.weight"]])
