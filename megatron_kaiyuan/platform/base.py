"""What the rest of the project may ask of a machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from megatron_kaiyuan.errors import UserError


class Platform(ABC):
    """One kind of device.

    Attributes:
        name: `cpu`, `cuda` or `npu`.
        collective_backend: the torch.distributed backend of its collectives.
        device: where this rank's tensors live; set by `activate()`.
        precisions: the training precisions that it computes in.
    """

    name: str
    collective_backend: str
    device: torch.device
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")

    @abstractmethod
    def activate(self, local_rank: int) -> None:
        """Select the device of this rank and prepare megatron-core for it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished what was queued."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Largest memory this process has held so far: of the device, or of the host for `cpu`."""

    @abstractmethod
    def rng_state(self) -> Any:
        """State of the device's random generator."""

    @abstractmethod
    def set_rng_state(self, state: Any) -> None:
        """Restore what `rng_state()` gave."""

    def device_names(self) -> list[str]:
        """The devices of this host that this process may use; none for `cpu`."""
        return []

    def require_precision(self, precision: str) -> None:
        """Refuse a precision that this device does not compute in.

        Raises:
            UserError: naming the precisions that work.
        """
        if precision not in self.precisions:
            raise UserError(
                f"train.precision: {precision} does not run on platform {self.name}; use {' or '.join(self.precisions)}"
            )
