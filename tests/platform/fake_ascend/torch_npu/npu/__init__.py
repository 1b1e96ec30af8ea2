"""torch_npu.npu, which is also torch.npu: the names of torch.cuda for NPUs."""

from __future__ import annotations

import contextlib
import resource
from typing import Any

import torch

from torch_npu import simulated
from torch_npu.npu import random, utils  # noqa: F401 - parts of this module, as in the real one
from torch_npu.npu.random import (
    _is_in_bad_fork,
    default_generators,
    get_rng_state,
    manual_seed,
    manual_seed_all,
    set_rng_state,
)

__all__ = [
    "Event", "FloatTensor", "HalfTensor", "Stream", "_is_in_bad_fork", "_lazy_call", "_lazy_init", "current_device",
    "current_stream", "default_generators", "default_stream", "device_count", "empty_cache", "get_device_capability",
    "get_device_name", "get_rng_state", "is_available", "is_bf16_supported", "is_initialized", "manual_seed",
    "manual_seed_all", "max_memory_allocated", "memory_allocated", "set_device", "set_rng_state", "stream",
    "synchronize",
]  # fmt: skip

FloatTensor, HalfTensor = torch.FloatTensor, torch.HalfTensor
_current = 0


class Stream:
    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event(Stream):
    def record(self, stream: Any = None) -> None:
        pass


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return simulated.options["devices"]


def set_device(device: int) -> None:
    global _current
    if not 0 <= device < device_count():
        raise RuntimeError(f"set_device: Invalid device ID {device}. ERR00001 PTA invalid parameter")
    _current = device
    simulated.record("set_device", device=device)


def current_device() -> int:
    return _current


def is_initialized() -> bool:
    return True


def is_bf16_supported() -> bool:
    return simulated.options["soc"] != "910A"


def get_device_name(device: Any = None) -> str:
    return f"Ascend{simulated.options['soc']}"


def get_device_capability(device: Any = None) -> None:
    return None


def memory_allocated(device: Any = None) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


max_memory_allocated = memory_allocated


def synchronize(device: Any = None) -> None:
    pass


def empty_cache() -> None:
    pass


def current_stream(device: Any = None) -> Stream:
    return Stream()


default_stream = current_stream


def stream(stream: Any) -> Any:
    return contextlib.nullcontext()


def _lazy_call(function: Any, **kwargs: Any) -> None:
    function()


def _lazy_init() -> None:
    pass
