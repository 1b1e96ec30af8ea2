"""The passes over a micro-batch, captured once as CUDA graphs and played back: no Python between their kernels.

A network of half a billion weights computes faster than Python can ask it to. Where a device captures its work (CUDA
graphs), both passes over a micro-batch are captured in the third step and played back from then on. A capture has
fixed shapes and takes no part in exchanges, so one rank has to hold the whole network; data parallelism is not touched,
as gradients are reduced after the passes. A step that is watched (hooks in the network) is computed as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.batch import Batch
from megatron_kaiyuan.train.parts import part

# The first steps allocate, compile and choose kernels.
_WARM_UP_STEPS = 2

Passes = Callable[[Batch, torch.Tensor], torch.Tensor]


class GraphedPasses:
    """Plays both passes of a network that is in one piece, over micro-batches of one shape."""

    def __init__(self, model: DistributedDataParallel, optimizer: MegatronOptimizer, platform: Platform):
        self._model, self._optimizer, self._platform = model, optimizer, platform
        self._steps = 0
        self._given_up = False
        # Those that are there to stay.
        self._hooks = _count_hooks(model)
        self._play: Callable[[], torch.Tensor] | None = None
        self._batch: Batch = {}
        self._scale = torch.empty(0)

    def run(self, batches: Iterable[Batch], passes: Passes) -> list[dict[str, torch.Tensor]] | None:
        """The losses of a step's micro-batches, whose gradients are reduced then; None: the step is not one to play.

        Args:
            passes: forward and backward over one micro-batch under a loss scale, which return its loss.
        """
        self._steps += 1
        if self._given_up or self._steps <= _WARM_UP_STEPS or _count_hooks(self._model) != self._hooks:
            return None
        losses = []
        for batch in _read(batches):
            if self._play is None:
                self._capture(batch, passes)
            for name, tensor in batch.items():
                kept = self._batch[name]
                if kept is not None and tensor is not None:
                    kept.copy_(tensor)
            self._scale.copy_(self._optimizer.get_loss_scale())
            assert self._play is not None
            # A capture writes its result to the same place each time.
            losses.append({"loss": self._play().clone()})
        with part("gradient reduce"):
            self._model.config.finalize_model_grads_func([self._model], None)
        return losses

    def play_no_more(self) -> None:
        """Leave all further steps to Python: the passes do what a capture cannot."""
        self._given_up = True

    def _capture(self, batch: Batch, passes: Passes) -> None:
        self._batch = {name: None if tensor is None else tensor.clone() for name, tensor in batch.items()}
        self._scale = self._optimizer.get_loss_scale().clone()

        def both() -> torch.Tensor:
            # What is made of a tensor once, as masks of documents, is made again of each view: within the capture.
            views = {name: None if tensor is None else tensor.view_as(tensor) for name, tensor in self._batch.items()}
            return passes(views, self._scale)

        self._play = self._platform.capture(both)
        # Capturing computes once to warm up.
        self._model.zero_grad_buffer()


def _read(batches: Iterable[Batch]) -> Iterable[Batch]:
    iterator = iter(batches)
    while True:
        with part("data"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def _count_hooks(network: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in network.modules()
    )
