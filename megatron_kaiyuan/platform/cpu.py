"""Plain CPU: megatron-core expects CUDA, so a few of its names are pointed elsewhere.

The modules of megatron-core listed here see, in place of the module `torch`, a copy of it whose `cuda` part
answers for the CPU and whose tensor factories read `device="cuda"` as `"cpu"`. torch itself, as everybody
else sees it, keeps its meaning, and no call is intercepted on the hot path. Two methods of `torch.Tensor`
cannot be reached that way: `cuda()` returns the tensor itself for the whole process, and `type()` names
CUDA types only while the three functions run that compare with these names (`type_names.py`). On a CPU without
instructions for half precision `matmul()` is a third: it multiplies in FP32 (`half.py`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_kaiyuan.platform import half, megatron
from megatron_kaiyuan.platform.base import Platform
from megatron_kaiyuan.platform.cores import cores_for_rank
from megatron_kaiyuan.platform.lean_imports import optimizers_without_compiler, without_compiler
from megatron_kaiyuan.platform.numa import bind_to_share
from megatron_kaiyuan.platform.type_names import answer_with_cuda_type_names

_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "rand", "randn", "tensor", "zeros", "zeros_like")


class CpuPlatform(Platform):
    """Gloo between processes; for trying everything, for tests, and for machines without an accelerator."""

    name = "cpu"
    collective_backend = "gloo"

    def activate(self, local_rank: int, local_world_size: int) -> None:
        self.device = torch.device("cpu")
        cores = bind_to_share(local_rank, local_world_size, os.environ)
        if cores is not None:
            self.findings["cores"] = cores
        self._choose_threads(local_world_size)
        with without_compiler():
            _point_megatron_at_cpu()
        optimizers_without_compiler()
        self.emulated = half.emulated()
        if self.emulated:
            half.multiply_in_fp32(self.emulated)
            self.findings["half precision"] = f"this CPU has no instructions for {' and '.join(self.emulated)}"

    def synchronize(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def rng_state(self) -> Any:
        # The one generator of a CPU process is saved by torch.get_rng_state() already.
        return None

    def set_rng_state(self, state: Any) -> None:
        pass

    @contextlib.contextmanager
    def without_memory(self) -> Iterator[None]:
        """Networks and optimizers that are built meanwhile have shapes and types, and no storage."""
        self.device = torch.device("meta")
        _CpuForCuda.target = "meta"
        try:
            with self.device:
                yield
        finally:
            self.device = torch.device("cpu")
            _CpuForCuda.target = "cpu"

    def _choose_threads(self, local_world_size: int) -> None:
        if os.environ.get("OMP_NUM_THREADS"):
            self.findings["threads"] = "OMP_NUM_THREADS is set"
            return
        # In every rank torch takes all cores of the affinity mask, and it knows no control groups.
        torch.set_num_threads(min(torch.get_num_threads(), cores_for_rank(local_world_size)))
        ranks = "rank" if local_world_size == 1 else "ranks"
        self.findings["threads"] = f"the cores of this node, for {local_world_size} {ranks}"


class _Stream:
    """A CUDA stream where there is none: work is done when it is called."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _CpuForCuda(types.ModuleType):
    """What `torch.cuda` means on a machine without one; names that are not here stay torch.cuda's."""

    Stream = _Stream
    # What `cuda` means as a device.
    target = "cpu"

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @classmethod
    def current_device(cls) -> str:
        return cls.target

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def is_current_stream_capturing() -> bool:
        return False

    @staticmethod
    def synchronize(device: Any = None) -> None:
        pass

    @staticmethod
    def empty_cache() -> None:
        pass

    @staticmethod
    def current_stream(device: Any = None) -> _Stream:
        return _Stream()

    @staticmethod
    def default_stream(device: Any = None) -> _Stream:
        return _Stream()

    @staticmethod
    def stream(stream: Any) -> Any:
        return contextlib.nullcontext()

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()


class _TorchForMegatron(types.ModuleType):
    """A copy of the module `torch`; what it does not hold is looked up in torch."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _point_megatron_at_cpu() -> None:
    # For modules that are imported later: they take the fuser they find there.
    megatron.module("jit").disable_jit_fuser()

    stand_in = _TorchForMegatron("torch")
    stand_in.__dict__.update(torch.__dict__)
    stand_in.__dict__["cuda"] = _CpuForCuda("torch.cuda")
    stand_in.__dict__["matmul"] = lambda one, other: one.matmul(other)
    for name in _FACTORIES:
        stand_in.__dict__[name] = _on_cpu(getattr(torch, name))
    for name in megatron.MODULES_THAT_NAME_CUDA:
        megatron.module(name).__dict__["torch"] = stand_in

    megatron.keep_random_state_of_cpu()
    megatron.give_no_advice_for_cuda()
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    answer_with_cuda_type_names()


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = _CpuForCuda.target
        return factory(*args, **kwargs)

    return make
