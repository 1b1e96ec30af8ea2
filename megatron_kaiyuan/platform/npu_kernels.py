"""Fused kernels of torch_npu, and whether one agrees with torch on a device.

Only `npu_trial` runs one that may fail: an operator that fails in torch_npu's task queue silently stops every later one
of its process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megatron_kaiyuan.platform.base import Fused, first_line

# By precision: its type, and how far a kernel may be from the result in FP32, as `atol` and `rtol` of allclose.
_TYPES = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 3e-2), "fp16": (torch.float16, 4e-3)}


@dataclass(frozen=True)
class _Candidate:
    """A kernel of torch_npu, how it is called, what torch computes, and shapes to try it on."""

    kernel: str
    call: Callable[..., torch.Tensor]
    expected: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]


def _rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    return torch.nn.functional.rms_norm(values, weight.shape, weight, epsilon)


def _npu_rms_norm(kernel: Any, values: torch.Tensor, weight: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    return kernel(values, weight, epsilon=epsilon)[0]


def _swiglu(values: torch.Tensor) -> torch.Tensor:
    gate, up = values.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def _npu_swiglu(kernel: Any, values: torch.Tensor) -> torch.Tensor:
    return kernel(values, dim=-1)


# npu_rotary_mul is left out: it wants cosines in the precision of the heads, which rounds angles twice.
_CANDIDATES = {
    "norm": _Candidate("npu_rms_norm", _npu_rms_norm, _rms_norm, ((4, 2, 256), (256,))),
    "swiglu": _Candidate("npu_swiglu", _npu_swiglu, _swiglu, ((4, 2, 512),)),
}
OPERATIONS = tuple(_CANDIDATES)


def kernel_name(operation: str) -> str:
    """What torch_npu calls its kernel of an operation."""
    return _CANDIDATES[operation].kernel


def fused_kernel(torch_npu: Any, operation: str) -> Fused:
    """torch_npu's kernel of an operation, called as `Platform.fused` says."""
    candidate = _CANDIDATES[operation]
    return partial(candidate.call, getattr(torch_npu, candidate.kernel))


def problem(torch_npu: Any, operation: str, device: torch.device, precisions: Sequence[str]) -> str | None:
    """Run a kernel forward and backward in each precision: how it differs from torch, as a phrase; None: it agrees."""
    candidate = _CANDIDATES[operation]
    if not hasattr(torch_npu, candidate.kernel):
        return "is not in this torch_npu"
    fused = fused_kernel(torch_npu, operation)
    for precision in precisions:
        try:
            agrees = _agrees(candidate, fused, device, *_TYPES[precision])
        except Exception as error:  # an operator that a device has not got fails in many ways
            return f"fails in {precision} ({first_line(error)})"
        if not agrees:
            return f"differs from torch in {precision}"
    return None


def _agrees(candidate: _Candidate, fused: Fused, device: torch.device, dtype: torch.dtype, tolerance: float) -> bool:
    # A generator of its own: a probe must not move the one that weights are drawn from.
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=drawn) for shape in candidate.shapes]
    gradient = torch.randn(candidate.expected(*inputs).shape, generator=drawn)

    def run(function: Fused, place: torch.device, kind: torch.dtype) -> list[torch.Tensor]:
        # Rounded before either side sees them, so that only the kernels differ.
        leaves = [part.to(dtype).to(place, kind, copy=True).requires_grad_() for part in inputs]
        output = function(*leaves)
        output.backward(gradient.to(dtype).to(place, kind))
        # Converted on the host: the device runs nothing but the kernel.
        return [part.detach().cpu().float() for part in (output, *(leaf.grad for leaf in leaves))]  # type: ignore[union-attr]

    expected = run(candidate.expected, torch.device("cpu"), torch.float32)
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance)
        for one, other in zip(run(fused, device, dtype), expected, strict=True)
    )
