"""megatron-core imported without what it takes along and training here does not use: half of the time of a start."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

# megatron-core 0.16 takes trackers where they are installed, for its own timers and its inference engine.
_TRACKERS = ("wandb", "tensorboard")
# The first call of one of these imports torch's compiler, to be left out of what it compiles.
_METHODS_THAT_IMPORT_THE_COMPILER = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@contextlib.contextmanager
def without_trackers() -> Iterator[None]:
    """In the body, importing a tracker fails as if it were not installed; those imported before stay."""
    hidden = [name for name in _TRACKERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """In the body, a function that is decorated with `torch.compile` stays as it is written.

    megatron-core decorates its fused functions when it is imported, which imports the compiler; its own switch is in
    one of the modules that this import brings, and comes too late.
    """
    compiler = torch.compile

    def leave(function: Any = None, **options: Any) -> Any:
        return leave if function is None else function

    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def optimizers_without_compiler() -> None:
    """torch's optimizers as for a process that compiles nothing."""
    for name in _METHODS_THAT_IMPORT_THE_COMPILER:
        method = getattr(torch.optim.Optimizer, name)
        setattr(torch.optim.Optimizer, name, getattr(method, "__wrapped__", method))
