"""Which tensor of a step left the range of its precision first, and where.

`monitor/spots.py` lists the tensors. The gradient of a tensor is made by the module that uses it, so that the gradient
of the residual stream belongs to the layer after it. A weight has the name of its parameter, and only its gradient is
looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.monitor.headroom import FP16_MAX
from megatron_kaiyuan.monitor.spots import Part, Spot, spots

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

    def __init__(self, network: GPTModel, look: Look):
        self._look = look
        self._micro_batches = MicroBatches(network)
        self.handles = self._micro_batches.handles
        for spot in spots(network):
            self.handles.append(spot.watch(partial(self._see, spot)))
        for part, layer, owner in _parts(network):
            for name, weight in part_weights(owner, part).items():
                seen = Seen(part, layer, name, name.removesuffix(".weight"), "backward")
                self.handles.append(self._see_gradient(weight, seen))

    def _see(self, spot: Spot, tensor: torch.Tensor) -> None:
        seen = Seen(spot.part, spot.layer, spot.tensor, spot.made_by, "forward")
        self._look(seen, self._micro_batches.forward, tensor.detach())
        if spot.used_by is not None and tensor.requires_grad:
            self._see_gradient(tensor, Seen(spot.part, spot.layer, spot.tensor, spot.used_by, "backward"))

    def _see_gradient(self, tensor: torch.Tensor, seen: Seen) -> RemovableHandle:
        return tensor.register_hook(lambda gradient: self._look(seen, self._micro_batches.backward, gradient.detach()))


def _parts(network: GPTModel) -> Iterator[tuple[Part, int | None, GPTModel | TransformerLayer]]:
    """The parts of a network on this rank, with the layer's number and what holds the weights."""
    if network.pre_process:
        yield "embedding", None, network
    yield from (("layer", layer.layer_number, layer) for layer in network.decoder.layers)
    if network.post_process:
        yield "head", None, network


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
class FirstOverflow:
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
        self.found: dict[Direction, FirstOverflow] = {}

    def __call__(self, seen: Seen, micro_batch: int, tensor: torch.Tensor) -> None:
        order = self._order[seen.direction, micro_batch]
        self._order[seen.direction, micro_batch] += 1
        if seen.direction not in self.found and out_of_range(tensor, self._saturates):
            self.found[seen.direction] = FirstOverflow(seen, micro_batch, order)

    @property
    def first(self) -> FirstOverflow | None:
        """A forward pass comes before any backward pass: what it leaves the range with breaks its backward pass."""
        return self.found.get("forward") or self.found.get("backward")


def out_of_range(tensor: torch.Tensor, saturates: bool) -> bool:
    """Whether an element is infinite or NaN; or, in FP16 on a device that saturates, is the largest number there is."""
    if saturates and tensor.dtype == torch.float16:
        return not bool((tensor.abs() < FP16_MAX).all())
    return not bool(tensor.isfinite().all())
