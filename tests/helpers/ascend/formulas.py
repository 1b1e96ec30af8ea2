"""Operators that torch has no CPU kernel for: torch_npu's own, and torch's that only devices compute in one piece.

They take and give tensors of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.helpers.ascend.attention import fusion_attention, fusion_attention_backward
from tests.helpers.ascend.gradients import gradients

_Optional = torch.Tensor | None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of products are kept in FP32 and rounded once."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.matmul(_wide(left), _wide(right)).to(left.dtype)


def addmm(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return torch.addmm(_wide(bias), _wide(left), _wide(right), beta=beta, alpha=alpha).to(left.dtype)


def baddbmm(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return torch.baddbmm(_wide(bias), _wide(left), _wide(right), beta=beta, alpha=alpha).to(left.dtype)


def linear(values: torch.Tensor, weight: torch.Tensor, bias: _Optional = None) -> torch.Tensor:
    return torch.nn.functional.linear(_wide(values), _wide(weight), None if bias is None else _wide(bias)).to(
        values.dtype
    )


def matmul_backward(
    gradient: torch.Tensor, left: torch.Tensor, right: torch.Tensor, wanted: list[bool]
) -> tuple[_Optional, _Optional]:
    found = gradients(torch.matmul, (left, right), gradient)
    one, other = (part if asked else None for part, asked in zip(found, wanted, strict=True))
    return one, other


def linear_backward(
    values: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, wanted: list[bool]
) -> tuple[_Optional, _Optional, _Optional]:
    values_2d, gradient_2d = (_wide(part).reshape(-1, part.shape[-1]) for part in (values, gradient))
    return (
        (_wide(gradient) @ _wide(weight)).to(values.dtype) if wanted[0] else None,
        (gradient_2d.t() @ values_2d).to(weight.dtype) if wanted[1] else None,
        gradient_2d.sum(0).to(weight.dtype) if wanted[2] else None,
    )


def cast(values: torch.Tensor, dtype: torch.dtype, *_: Any, **__: Any) -> torch.Tensor:
    return values.to(dtype)


def format_cast(values: torch.Tensor, *_: Any) -> torch.Tensor:
    """Of a device's layouts of memory the host has one."""
    return values.clone()


def repeat_interleave_backward(
    gradient: torch.Tensor, values: torch.Tensor, repeats: int, dim: int | None = None
) -> torch.Tensor:
    if dim is None:
        return gradient.reshape(-1, repeats).sum(1).reshape(values.shape)
    dim %= values.dim()
    return gradient.unflatten(dim, (values.shape[dim], repeats)).sum(dim + 1)


def rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = torch.rsqrt(values.float().square().mean(-1, keepdim=True) + epsilon)
    return (values.float() * inverse * weight.float()).to(values.dtype), inverse


def rms_norm_backward(
    gradient: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    normed = values.float() * inverse
    scaled = gradient.float() * weight.float()
    back = inverse * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    dims = tuple(range(values.dim() - weight.dim()))
    return back.to(values.dtype), (gradient.float() * normed).sum(dims)


def swiglu(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    gate, up = _wide(values).chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(values.dtype)


def swiglu_backward(gradient: torch.Tensor, values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return gradients(lambda leaf: swiglu(leaf, dim), (values,), gradient)[0]


FORMULAS: dict[str, Callable[..., Any]] = {
    "aten::addmm": addmm,
    "aten::baddbmm": baddbmm,
    "aten::bmm": matmul,
    "aten::linear": linear,
    "aten::linear_backward": linear_backward,
    "aten::matmul": matmul,
    "aten::matmul_backward": matmul_backward,
    "aten::mm": matmul,
    "npu::_npu_dtype_cast": cast,
    "npu::_npu_dtype_cast_backward": cast,
    "npu::npu_dtype_cast": cast,
    "npu::npu_dtype_cast_backward": cast,
    "npu::npu_format_cast": format_cast,
    "npu::npu_fusion_attention_grad_v3": fusion_attention_backward,
    "npu::npu_fusion_attention_v3": fusion_attention,
    "npu::npu_rms_norm": rms_norm,
    "npu::npu_rms_norm_backward": rms_norm_backward,
    "npu::npu_swiglu": swiglu,
    "npu::npu_swiglu_backward": swiglu_backward,
    "npu::repeat_interleave_backward_int": repeat_interleave_backward,
}
