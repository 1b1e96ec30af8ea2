"""Every watched activation from the definitions of the network: tests/export's plain PyTorch one, taken apart."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from megatron_kaiyuan.config import ModelConfig
from tests.helpers.references.network import attention, post, rms_norm, rotate, swiglu


def reference_activations(weights: dict[str, Tensor], model: ModelConfig, token_ids_bs: Tensor) -> dict[str, list]:
    """Whole tensors by name, one for each place; q, k and logits as lists of one tensor a head."""
    seen: dict[str, list] = defaultdict(list)
    stream = weights["embedding.word_embeddings.weight"][token_ids_bs]
    seen["embedding"].append(stream)
    for index in range(model.num_layers):
        layer = {
            name.removeprefix("decoder.layers."): tensor[index]
            for name, tensor in weights.items()
            if name.startswith("decoder.layers.")
        }
        normed = rms_norm(stream, layer["input_layernorm.weight"], model)
        _see_heads(seen, normed, layer, model)
        stream = stream + _see_output(seen, "attention", attention(normed, layer, model), layer, model)
        seen["residual_after_attention"].append(stream)
        normed = rms_norm(stream, layer["pre_mlp_layernorm.weight"], model)
        gate, up = (normed @ layer["mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
        seen["mlp_activation"].append(gate * torch.sigmoid(gate) * up)
        stream = stream + _see_output(seen, "mlp", swiglu(normed, layer), layer, model)
        seen["residual"].append(stream)
    logits = rms_norm(stream, weights["decoder.final_layernorm.weight"], model) @ weights["output_layer.weight"].T
    seen["logits"].append(logits)
    if cap := model.logits_soft_cap:
        seen["capped_logits"].append(cap * torch.tanh(logits / cap))
    return seen


def _see_output(
    seen: dict[str, list], name: str, output: Tensor, layer: dict[str, Tensor], model: ModelConfig
) -> Tensor:
    seen[f"{name}_output"].append(output)
    if not model.sandwich_norm:
        return output
    added = post(output, layer, {"attention": "self_attention", "mlp": "mlp"}[name], model)
    seen[f"{name}_post_norm"].append(added)
    return added


def _see_heads(seen: dict[str, list], normed: Tensor, layer: dict[str, Tensor], model: ModelConfig) -> None:
    per_group = model.num_attention_heads // model.num_query_groups
    rows = (normed @ layer["self_attention.linear_qkv.weight"].T).split(model.kv_channels, dim=-1)
    future = torch.ones(normed.shape[1], normed.shape[1], dtype=torch.bool).triu(1)
    queries, keys, scores = [], [], []
    for at in range(0, len(rows), per_group + 2):
        key = rotate(rms_norm(rows[at + per_group], layer["self_attention.k_layernorm.weight"], model), model)
        keys.append(key)
        for row in rows[at : at + per_group]:
            query = rotate(rms_norm(row, layer["self_attention.q_layernorm.weight"], model), model)
            queries.append(query)
            scores.append((query @ key.transpose(-1, -2) / model.kv_channels**0.5).masked_fill(future, 0))
    for name, parts in (("query", queries), ("key", keys), ("attention_logits", scores)):
        seen[name].append(torch.stack(parts))
