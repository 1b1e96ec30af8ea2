"""What the rest of the project may ask of a machine."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from megatron_kaiyuan.errors import UserError

if TYPE_CHECKING:
    # Planning reads the figures of devices and needs no torch.
    import torch

Fused: TypeAlias = "Callable[..., torch.Tensor]"


class Mark(Protocol):
    """A point in the queue of a device; torch's events are such."""

    def record(self) -> None:
        """The point is here, after all that was queued so far."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds to a later mark; the device has come past both."""


class HostMark:
    """A mark on the clock of the host, for devices that compute at once."""

    def __init__(self) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, later: HostMark) -> float:
        return 1e3 * (later._at - self._at)


def recorded_collectives(name: str, default: str) -> bytes | None:
    """Return what torch's function of that name dumps; None where nothing is recorded.

    Args:
        default: size of the record, in collectives, where the environment does not say it.
    """
    import torch

    if os.environ.get("TORCH_FR_BUFFER_SIZE", default) == "0":
        return None
    # Missing where torch was built without that library of collectives.
    dump = getattr(torch._C._distributed_c10d, name, None)
    return dump() if dump is not None else None


class Platform(ABC):
    """One kind of device.

    Attributes:
        name: `cpu`, `cuda` or `npu`.
        collective_backend: the torch.distributed backend of its collectives.
        device: where this rank's tensors live; set by `activate()`.
        precisions: the training precisions that it computes in.
        fused: the device's own kernels by operation: `norm` of input, weight and epsilon, `swiglu` of gate and up.
        emulated: precisions that it computes in much more slowly than in FP32; there products and attention are
            computed in FP32 and rounded once.
        has_float64: tensors of FP64 are computed with and exchanged.
        has_fused_adamw: torch's fused AdamW has a kernel for this device.
        fused_attention: torch has an attention for this device that does not keep the scores of all pairs of tokens.
        products_round_fp32: products of FP32 matrices are computed from inputs rounded to FP16.
        keeps_overflow: overflows are kept in a register of the device and leave finite numbers, no infinity or NaN.
        compiles_operators: operators are compiled when first called, and again for another shape.
        captures: whether `capture` makes something that runs without Python.
        findings: what was found on this machine, by what it would serve (`norm`, `optimizer`, ...), as a phrase.
    """

    name: str
    collective_backend: str
    device: torch.device
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    emulated: tuple[str, ...] = ()
    has_float64: bool = True
    has_fused_adamw: bool = True
    fused_attention: bool = True
    products_round_fp32: bool = False
    keeps_overflow: bool = False
    compiles_operators: bool = False
    captures: bool = False

    def __init__(self) -> None:
        self.findings: dict[str, str] = {}
        self.fused: dict[str, Fused] = {}

    @abstractmethod
    def activate(self, local_rank: int, local_world_size: int) -> None:
        """Select the device of this rank and prepare megatron-core for it."""

    def adapt_megatron(self) -> None:
        """Give megatron-core, once it is imported, what it lacks on this device."""
        return

    def limit_collectives(self, shortest: float, longest: float) -> None:
        """Let the library of collectives give one up between these seconds; before process groups are made."""
        return

    def mark(self) -> Mark:
        """A place in what this process does, which `record()` sets."""
        return HostMark()

    def flight_recorder(self) -> bytes | None:
        """Return the last collectives of this process as torch's flight recorder pickles them; None: it is off."""
        return recorded_collectives("_dump_fr_trace", default="0")

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has finished what was queued."""

    def memory(self) -> tuple[int, int] | None:
        """Bytes of this rank's device that are free, and all of them; None for `cpu`."""
        return None

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Largest memory this process has held so far: of the device, or of the host for `cpu`."""

    @abstractmethod
    def rng_state(self) -> Any:
        """State of the device's random generator."""

    @abstractmethod
    def set_rng_state(self, state: Any) -> None:
        """Restore what `rng_state()` gave."""

    def capture(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Call a function once to warm up, and return what computes the same each time from the same memory.

        Its result lies in the same place each time. Where `captures`, the function's own Python is not run again.
        """
        function()
        return function

    def beside(self) -> AbstractContextManager:
        """A context for building what takes part in `record`."""
        return nullcontext()

    def clear_overflow(self) -> None:
        """Forget the overflows so far, where `keeps_overflow`."""
        return

    def overflow_flag(self) -> torch.Tensor | None:
        """Whether arithmetic overflowed since `clear_overflow()`: 1 or 0, an FP32 scalar on the device.

        None where overflows leave infinities. Does not wait for the device.
        """
        return None

    def overflowed(self) -> bool:
        """`overflow_flag()` as the host sees it, False where it is None. Waits for the device."""
        flag = self.overflow_flag()
        return flag is not None and bool(flag)

    def device_name(self) -> str:
        """This rank's device as its driver calls it; the platform's name where there is no driver."""
        return self.name

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
                f"train.precision: {precision} does not run on {self.device_name()}; use {' or '.join(self.precisions)}"
            )


class NoDevice(UserError):
    """This rank has no device, though ranks of other nodes may have theirs.

    Attributes:
        whole_node: no rank of this node has one, so that one of them prints it.
        lost: it had one in an earlier start.
    """

    def __init__(self, message: str, whole_node: bool = False):
        super().__init__(message)
        self.whole_node = whole_node
        self.lost = False


def device_index(kind: str, local_rank: int, visible: int, ranks: int, present: int) -> int:
    """Return the index of a rank's device among those that it sees.

    Args:
        kind: as users call such a device.
        visible: devices that this process sees.
        ranks: on this node.
        present: devices of this node. Where they are enough for all ranks, a launcher has shown each rank its own ones
            only (Slurm's `--gpus-per-task`, wrappers that set CUDA_VISIBLE_DEVICES).

    Raises:
        NoDevice: this rank's device is missing.
    """
    if local_rank < visible:
        return local_rank
    if ranks * visible <= present:
        return 0
    raise NoDevice(
        f"platform: local rank {local_rank} of {ranks} has no {kind}, this node shows {visible}; "
        "start fewer processes a node, or set platform=cpu"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
