"""Tensor type names as megatron-core expects them.

megatron-core 0.16 compares `tensor.type()` with names such as `torch.cuda.HalfTensor` in three places, which fails on
every other device. There, and only while these functions run, `type()` answers with CUDA's name.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_kaiyuan.platform import megatron

# `torch.HalfTensor` on the CPU, `torch.npu.HalfTensor` on an NPU, `torch.meta.HalfTensor` without memory.
_TYPE_NAME = re.compile(r"torch\.(?:npu\.|meta\.)?(Float|Half|BFloat16)Tensor")


def answer_with_cuda_type_names() -> None:
    """Wrap the functions of megatron-core that compare type names, for the rest of the process."""
    optimizer = megatron.module("optimizer.optimizer")
    optimizer.clip_grad_by_total_norm_fp32 = _wrapped(optimizer.clip_grad_by_total_norm_fp32)
    distributed_optimizer = megatron.module("optimizer.distrib_optimizer").DistributedOptimizer
    for kind in (distributed_optimizer, optimizer.Float16OptimizerWithFloat16Params):
        kind.__init__ = _wrapped(kind.__init__)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _cuda_type_names():
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    original = torch.Tensor.type

    def renamed(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        return _TYPE_NAME.sub(r"torch.cuda.\1Tensor", answer) if isinstance(answer, str) else answer

    torch.Tensor.type = renamed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]
