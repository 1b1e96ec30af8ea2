"""Which tensor of a step left the range of its precision first, and where.

Tensors have the names of `monitor/tensors.py`, and these besides, in the order of the forward pass:

    layer_input        the residual stream in front of the layer
    attention_norm     behind the norm in front of attention
    qkv                of the first linear of attention
    query_norm         behind QK-norm, before RoPE; key_norm likewise (with model.qk_layernorm)
    value              as it enters attention
    attention_context  of core attention, before the last linear
    mlp_norm           behind the norm in front of the MLP
    mlp_gate_and_up    of the first linear of the MLP
    head_input         the residual stream in front of the final norm
    final_norm         behind the final norm
    losses             of each token, behind cap and cross-entropy

The gradient of a tensor is made by the module that uses it, so that the gradient of the residual stream belongs to the
layer behind it. A weight has the name of its parameter, and only its gradient is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.monitor.headroom import FP16_MAX

Part: TypeAlias = Literal["embedding", "layer", "head"]
Direction: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True)
class Seen:
    """A tensor, or the gradient of one.

    Attributes:
        layer: counted from 1; None outside of layers.
        tensor: its name, also where this is its gradient.
        module: that made it, relative to the layer or to the part; forward the one that gives the tensor, backward
            the one that uses it.
    """

    part: Part
    layer: int | None
    tensor: str
    module: str
    direction: Direction

    def __str__(self) -> str:
        what = self.tensor if self.direction == "forward" else f"gradient of {self.tensor}"
        where = f"the {self.part}" if self.layer is None else f"layer {self.layer}"
        return f"{what} in {where} ({self.direction} pass of {self.module})"


Look: TypeAlias = Callable[[Seen, int, torch.Tensor], None]


class _Spot(NamedTuple):
    """Where a tensor is: what makes it and, where its gradient is looked at, what uses it."""

    part: Part
    layer: int | None
    tensor: str
    made_by: str
    used_by: str | None = None


class MicroBatches:
    """Which micro-batch the passes through a network are at, from 0; -1 before the first.

    Attributes:
        forward, backward: of the pass of that direction that began last. A layer that is recomputed is in the latter.
        handles: of the hooks.
    """

    def __init__(self, network: GPTModel):
        self.forward = self.backward = -1
        self.handles: list[RemovableHandle] = [
            network.register_forward_pre_hook(self._begin),
            network.register_forward_hook(self._end),
        ]

    def _begin(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.forward += 1

    def _end(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        micro_batch = self.forward

        def backward_begins(gradient: torch.Tensor) -> None:
            self.backward = micro_batch

        if output.requires_grad:
            output.register_hook(backward_begins)


class TensorWatch:
    """Shows every tensor and gradient of this rank's part of a network to `look`, in the order of execution.

    Args:
        look: gets what is seen, the number of the micro-batch from 0, and the tensor.

    Attributes:
        handles: of the hooks; they change nothing and stay until they are removed.
    """

    def __init__(self, network: GPTModel, model: ModelConfig, look: Look):
        self._look = look
        self._micro_batches = MicroBatches(network)
        self.handles = self._micro_batches.handles
        if network.pre_process:
            # What uses it is the first layer, which sees its gradient.
            self._output(network.embedding, _Spot("embedding", None, "embedding", "word_embeddings"))
            self._weights("embedding", None, network)
        for layer in network.decoder.layers:
            self._watch_layer(layer)
        if network.post_process:
            self._watch_head(network)
            self._output(network, _Spot("head", None, "losses", "cross_entropy", "mean_loss"))

    def _watch_layer(self, layer: TransformerLayer) -> None:
        attention, mlp, spot = layer.self_attention, layer.mlp, partial(_Spot, "layer", layer.layer_number)
        first, core, last = (f"self_attention.{name}" for name in ("linear_qkv", "core_attention", "linear_proj"))
        self._input(layer, spot("layer_input", "the layer before", "input_layernorm"))
        self._output(layer.input_layernorm, spot("attention_norm", "input_layernorm", first))
        self._output(attention.linear_qkv, spot("qkv", first, "self_attention"))
        for norm, name in (("q_layernorm", "query_norm"), ("k_layernorm", "key_norm")):
            if hasattr(getattr(attention, norm), "weight"):
                self._output(getattr(attention, norm), spot(name, f"self_attention.{norm}", "self_attention"))
        for index, name in enumerate(("query", "key", "value")):
            self._input(attention.core_attention, spot(name, "self_attention", core), index)
        self._output(attention.core_attention, spot("attention_context", core, last))
        self._last_linear(attention.linear_proj, spot, "attention", last, "self_attn_bda")
        self._input(layer.pre_mlp_layernorm, spot("residual_after_attention", "self_attn_bda", "pre_mlp_layernorm"))
        self._output(layer.pre_mlp_layernorm, spot("mlp_norm", "pre_mlp_layernorm", "mlp.linear_fc1"))
        self._output(mlp.linear_fc1, spot("mlp_gate_and_up", "mlp.linear_fc1", "mlp"))
        self._input(mlp.linear_fc2, spot("mlp_activation", "mlp", "mlp.linear_fc2"))
        self._last_linear(mlp.linear_fc2, spot, "mlp", "mlp.linear_fc2", "mlp_bda")
        # What uses it is the next layer, which sees its gradient.
        self._output(layer, spot("residual", "mlp_bda"))
        self._weights("layer", layer.layer_number, layer)

    def _last_linear(
        self, linear: torch.nn.Module, spot: Callable[..., _Spot], name: str, path: str, adds: str
    ) -> None:
        """The last linear of a sub-layer, with its post-norm if it has one, and the sum `adds` behind it."""
        if not hasattr(linear, "post_norm"):
            self._output(linear, spot(f"{name}_output", path, adds))
            return
        self._input(linear.get_submodule("post_norm"), spot(f"{name}_output", path, f"{path}.post_norm"))
        self._output(linear, spot(f"{name}_post_norm", f"{path}.post_norm", adds))

    def _watch_head(self, network: GPTModel) -> None:
        norm, head, spot = network.decoder.final_layernorm, network.output_layer, partial(_Spot, "head", None)
        self._input(norm, spot("head_input", "the last layer", "final_layernorm"))
        self._output(norm, spot("final_norm", "final_layernorm", "output_layer"))
        self._output(head, spot("logits", "output_layer", "cross_entropy"))
        self._weights("head", None, network)

    def _input(self, module: torch.nn.Module, spot: _Spot, index: int = 0) -> None:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self._see(inputs[index] if inputs else options["hidden_states"], spot)

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _output(self, module: torch.nn.Module, spot: _Spot) -> None:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._see(output[0] if isinstance(output, tuple) else output, spot)

        self.handles.append(module.register_forward_hook(hook))

    def _see(self, tensor: torch.Tensor, spot: _Spot) -> None:
        seen = Seen(spot.part, spot.layer, spot.tensor, spot.made_by, "forward")
        self._look(seen, self._micro_batches.forward, tensor.detach())
        if spot.used_by is not None and tensor.requires_grad:
            self._see_gradient(tensor, Seen(spot.part, spot.layer, spot.tensor, spot.used_by, "backward"))

    def _see_gradient(self, tensor: torch.Tensor, seen: Seen) -> RemovableHandle:
        return tensor.register_hook(lambda gradient: self._look(seen, self._micro_batches.backward, gradient.detach()))

    def _weights(self, part: Part, layer: int | None, owner: GPTModel | TransformerLayer) -> None:
        for name, weight in part_weights(owner, part).items():
            seen = Seen(part, layer, name, name.removesuffix(".weight"), "backward")
            self.handles.append(self._see_gradient(weight, seen))


def part_weights(owner: GPTModel | TransformerLayer, part: Part) -> dict[str, torch.nn.Parameter]:
    """The parameters of one part by name.

    Args:
        owner: the layer itself, or the network that has the embedding or the head.
    """
    if isinstance(owner, TransformerLayer):
        return dict(owner.named_parameters())
    if part == "embedding":
        return dict(owner.embedding.named_parameters())
    ends = {"final_layernorm": owner.decoder.final_layernorm, "output_layer": owner.output_layer}
    return {f"{name}.{own}": weight for name, end in ends.items() for own, weight in end.named_parameters()}


@dataclass(frozen=True)
class Found:
    """The first tensor of one pass over a micro-batch on this rank that left the range.

    Attributes:
        micro_batch: from 0.
        order: how many tensors were seen before it in this pass over the micro-batch.
    """

    seen: Seen
    micro_batch: int
    order: int


class FirstOutOfRange:
    """Looks for the first tensor that left the range of its precision; waits for the device at each one.

    Args:
        saturates: the device makes the largest number of an overflow, neither infinity nor NaN.

    Attributes:
        found: by direction.
    """

    def __init__(self, saturates: bool):
        self._saturates = saturates
        self._order: Counter[tuple[Direction, int]] = Counter()
        self.found: dict[Direction, Found] = {}

    def __call__(self, seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        order = self._order[seen.direction, micro_batch]
        self._order[seen.direction, micro_batch] += 1
        if seen.direction not in self.found and out_of_range(tensor, self._saturates):
            self.found[seen.direction] = Found(seen, micro_batch, order)

    @property
    def first(self) -> Found | None:
        """A forward pass comes before any backward pass: what it leaves the range with breaks its backward pass."""
        return self.found.get("forward") or self.found.get("backward")


def out_of_range(tensor: torch.Tensor, saturates: bool) -> bool:
    """Whether an element is infinite or NaN; or, in FP16 on a device that saturates, is the largest number there is."""
    if saturates and tensor.dtype == torch.float16:
        return not bool((tensor.abs() < FP16_MAX).all())
    return not bool(tensor.isfinite().all())
