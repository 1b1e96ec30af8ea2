"""The parts of a training step, as ranges that torch's profiler shows; without a profiler they cost next to nothing."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

from torch.profiler import record_function

# As they come in a step. `pipeline` is what its schedule takes besides passes: waiting for other stages, mostly.
PARTS = (
    *("hooks", "zero gradients", "data", "forward", "backward", "pipeline", "gradient reduce"),
    *("loss", "gradient norm", "gradient clip", "optimizer"),
)
# What megatron-core 0.16 times in the schedule of a step; all else is `pipeline`.
_TIMED = {
    "forward-compute": "forward",
    "backward-compute": "backward",
    **dict.fromkeys(
        (
            "all-grads-sync",
            "conditional-embedder-grads-all-reduce",
            "embedding-grads-all-reduce",
            "non-tensor-parallel-grads-all-reduce",
        ),
        "gradient reduce",
    ),
}
_NOTHING = contextlib.nullcontext()
_recording = False


def record_parts(on: bool) -> None:
    """Parts that begin from now on are ranges for torch's profiler, or nothing."""
    global _recording
    _recording = on


def part(name: str, of: object = None) -> AbstractContextManager[Any]:
    """The body is this part of a step; a part within another one is no longer the outer one's.

    Args:
        of: whose work it is, for the range's name.
    """
    if not _recording:
        return _NOTHING
    return record_function(name if of is None else f"{name}: {type(of).__name__}")


def part_named(name: str) -> str | None:
    """The part that a range of this name belongs to; None for ranges of others."""
    name = name.partition(":")[0]
    return name if name in PARTS else None


class PartTimers:
    """Takes the place of megatron-core's `Timers` in its configuration: what it would time are parts.

    Its schedules call passes, sends and reductions themselves, and offer no other way to stand round them.
    """

    def __init__(self) -> None:
        self._timers: dict[str, _PartTimer] = {}

    def __call__(self, name: str, log_level: int = 0) -> _PartTimer:
        return self._timers.setdefault(name, _PartTimer(_TIMED.get(name, "pipeline")))


class _PartTimer:
    def __init__(self, name: str):
        self._name = name
        self._range: AbstractContextManager[Any] = _NOTHING

    def start(self, barrier: bool = False) -> None:
        # Without the barrier: it would change what is looked at, and only this rank would come to it.
        self._range = part(self._name)
        self._range.__enter__()

    def stop(self, barrier: bool = False) -> None:
        self._range.__exit__(None, None, None)
