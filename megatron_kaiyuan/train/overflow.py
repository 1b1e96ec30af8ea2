"""Overflows in backward passes, on a device that keeps them in a register and leaves finite numbers behind."""

from __future__ import annotations

import torch

from megatron_kaiyuan.platform import Platform


class BackwardOverflow:
    """Whether the backward passes of one step overflowed on this rank.

    Forward passes do not count: where scores are masked they may overflow without harm. The register is cleared when a
    backward pass begins, and read before the next forward pass and at the end, as Ascend's adaptors of Megatron-LM and
    DeepSpeed do. On other devices nothing happens, and the gradients themselves tell.
    """

    def __init__(self, platform: Platform):
        self._platform = platform
        self._counting = False
        self._found = False

    def before_forward(self) -> None:
        """Call it before each forward pass."""
        if self._counting:
            self._found = self._platform.overflowed() or self._found
            self._counting = False

    def after_forward(self, output: torch.Tensor) -> None:
        """Call it with what each forward pass gave."""
        if self._platform.keeps_overflow:
            output.register_hook(self._backward_begins)

    def found(self) -> bool:
        """Call it after the last backward pass."""
        self.before_forward()
        return self._found

    def _backward_begins(self, gradient: torch.Tensor) -> None:
        # One that follows another without a forward pass between them goes on counting.
        if not self._counting:
            self._platform.clear_overflow()
            self._counting = True
