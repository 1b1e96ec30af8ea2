"""An exponential moving average (EMA) of the weights, kept while a run trains.

Each rank averages the FP32 weights that it updates (`main_weights.py`), so that the average is cut over the ranks as
they are, and a checkpoint holds whole tensors that any layout reads (`sharded.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.config.ema import EmaConfig
from megatron_kaiyuan.optim.main_weights import main_weights
from megatron_kaiyuan.optim.sharded import sharded_pieces

# The tensors are `optimizer.state.ema.NAME` in a checkpoint.
_STATE = "ema"


class WeightEma:
    """sum of d^(n-i) w_i over the updates that count, by the sum of d^(n-i): normalised, so that it has no start value.

    d is the decay of a step to the power of the updates between two that count; w_i are the weights after the i-th.

    Args:
        decay: of a step, in (0, 1).

    Attributes:
        values: of each parameter those that this rank updates, flat, FP32.
        total: the sum of d^(n-i); 0 before the first update, when the average is the weights as they were.
    """

    def __init__(self, optimizer: ChainedOptimizer, options: EmaConfig):
        assert options.decay is not None
        self._optimizer, self._every = optimizer, options.every_steps
        self._decay = options.decay**options.every_steps
        self.values = {
            weights.parameter: torch.empty_like(weights.values, device=_device(weights.values, options))
            for weights in main_weights(optimizer)
        }
        self.total = 0.0

    @torch.no_grad()
    def begin(self) -> None:
        """Forget what was averaged: the average is the weights as they are."""
        self.total = 0.0
        for weights in main_weights(self._optimizer):
            self.values[weights.parameter].copy_(weights.values)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take the weights in, if this update counts.

        Args:
            updates: of the run so far; steps whose update was withheld are not among them.
        """
        if updates % self._every:
            return
        self.total = self.total * self._decay + 1.0
        for weights in main_weights(self._optimizer):
            values = self.values[weights.parameter]
            values.lerp_(weights.values.to(values.device), 1.0 / self.total)

    def sharded(self, network: dict[str, Any]) -> dict[str, Any]:
        """Return what is common to all ranks, and under `pieces` this rank's rectangles, which are views.

        Args:
            network: the network's sharded state, with the parameters themselves as data.
        """
        pieces = sharded_pieces(self._optimizer, network, lambda mine: {_STATE: self.values[mine.parameter]})
        return {"total": self.total, "pieces": pieces}

    @torch.no_grad()
    def restore(self, network: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Take over what was loaded into the form of `sharded`."""
        self.total = float(loaded["total"])
        for name, target in self.sharded(network)["pieces"].items():
            target.data.copy_(loaded["pieces"][name])


def _device(values: torch.Tensor, options: EmaConfig) -> torch.device:
    # A dry run has no memory on any device.
    return torch.device("cpu") if options.device == "cpu" and not values.is_meta else values.device
