"""The one list of observed tensors: what each is called, and where a hook finds it in a network.

Names are those of `monitor/tensors.py`, which are measured while training, and these besides, in the order of the
forward pass, for whoever looks for the first one out of range:

    layer_input        the residual stream before the layer
    attention_norm     after the norm before attention
    qkv                of the first linear of attention
    query_norm         after QK-norm, before RoPE; key_norm likewise (with model.qk_layernorm)
    value              as it enters attention
    attention_context  of core attention, before the last linear
    mlp_norm           after the norm before the MLP
    mlp_gate_and_up    of the first linear of the MLP
    head_input         the residual stream before the final norm
    final_norm         after the final norm
    losses             of each token, after cap and cross-entropy

A tensor that no module takes or gives is not in it: attention logits and capped logits are computed from some that are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.network import POST_NORM

Part: TypeAlias = Literal["embedding", "layer", "head"]


@dataclass(frozen=True)
class Spot:
    """Where a tensor is.

    Attributes:
        layer: counted from 1; None outside of layers.
        tensor: its name.
        module: that takes it, as its input number `argument`, or gives it, where that is None.
        made_by: the module that gives the tensor, relative to the layer or to the part.
        used_by: the one that uses it, which makes its gradient; None where that is seen as another part's.
    """

    part: Part
    layer: int | None
    tensor: str
    module: torch.nn.Module
    argument: int | None
    made_by: str
    used_by: str | None = None

    def watch(self, look: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Show the tensor of each forward pass until the hook is removed."""
        if (argument := self.argument) is None:

            def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                look(output[0] if isinstance(output, tuple) else output)

            return self.module.register_forward_hook(after)

        def before(module: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            look(inputs[argument] if inputs else options["hidden_states"])

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def spots(network: GPTModel) -> Iterator[Spot]:
    """Every observed tensor of this rank's part of a network, in the order of execution."""
    if network.pre_process:
        # What uses it is the first layer, which sees its gradient.
        yield Spot("embedding", None, "embedding", network.embedding, None, "word_embeddings")
    for layer in network.decoder.layers:
        yield from _spots_of_layer(layer)
    if network.post_process:
        norm, head, spot = network.decoder.final_layernorm, network.output_layer, partial(Spot, "head", None)
        yield spot("head_input", norm, 0, "the last layer", "final_layernorm")
        yield spot("final_norm", norm, None, "final_layernorm", "output_layer")
        yield spot("logits", head, None, "output_layer", "cross_entropy")
        yield spot("losses", network, None, "cross_entropy", "mean_loss")


def _spots_of_layer(layer: TransformerLayer) -> Iterator[Spot]:
    attention, mlp, spot = layer.self_attention, layer.mlp, partial(Spot, "layer", layer.layer_number)
    first, core, last = (f"self_attention.{name}" for name in ("linear_qkv", "core_attention", "linear_proj"))
    yield spot("layer_input", layer, 0, "the layer before", "input_layernorm")
    yield spot("attention_norm", layer.input_layernorm, None, "input_layernorm", first)
    yield spot("qkv", attention.linear_qkv, None, first, "self_attention")
    for norm, name in (("q_layernorm", "query_norm"), ("k_layernorm", "key_norm")):
        if hasattr(getattr(attention, norm), "weight"):
            yield spot(name, getattr(attention, norm), None, f"self_attention.{norm}", "self_attention")
    for index, name in enumerate(("query", "key", "value")):
        yield spot(name, attention.core_attention, index, "self_attention", core)
    yield spot("attention_context", attention.core_attention, None, core, last)
    yield from _end_of_sub_layer(attention, "linear_proj", spot, "attention", "self_attention", "self_attn_bda")
    yield spot("residual_after_attention", layer.pre_mlp_layernorm, 0, "self_attn_bda", "pre_mlp_layernorm")
    yield spot("mlp_norm", layer.pre_mlp_layernorm, None, "pre_mlp_layernorm", "mlp.linear_fc1")
    yield spot("mlp_gate_and_up", mlp.linear_fc1, None, "mlp.linear_fc1", "mlp")
    yield spot("mlp_activation", mlp.linear_fc2, 0, "mlp", "mlp.linear_fc2")
    yield from _end_of_sub_layer(mlp, "linear_fc2", spot, "mlp", "mlp", "mlp_bda")
    # What uses it is the next layer, which sees its gradient.
    yield spot("residual", layer, None, "mlp_bda")


def _end_of_sub_layer(
    sub_layer: torch.nn.Module, last: str, spot: Callable[..., Spot], name: str, path: str, adds: str
) -> Iterator[Spot]:
    """What the last linear gives, and the norm after it where the sub-layer ends in one; `adds` is the sum after it."""
    norm, norm_path = getattr(sub_layer, POST_NORM, None), f"{path}.{POST_NORM}"
    used_by = adds if norm is None else norm_path
    yield spot(f"{name}_output", sub_layer.get_submodule(last), None, f"{path}.{last}", used_by)
    if norm is not None:
        yield spot(f"{name}_{POST_NORM}", norm, None, norm_path, adds)
