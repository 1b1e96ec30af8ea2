"""What megatron-core takes from Apex and Transformer Engine on a GPU, by torch's own kernels where neither is there.

Without them megatron-core 0.16 waits for the GPU once for each weight when it takes the norm of the gradients, scales
them through a copy, and adds each weight's gradient to the FP32 sum in a pass of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_kaiyuan.platform import megatron
from megatron_kaiyuan.platform.base import first_line


def use_foreach_for_clipping() -> None:
    """Norm and scale of all gradients in a few kernels, for the rest of the process."""
    megatron.clip_with(_norm, _scale)


def use_torch_to_accumulate() -> str | None:
    """Let products of weight gradients add themselves to the FP32 sum; why that cannot be, or None.

    megatron-core's layers do it where `gradient_accumulation_fusion` is set.
    """
    if megatron.accumulates_weight_gradients():
        return None
    try:
        for dtype in (torch.float16, torch.bfloat16):
            ones, total = torch.ones(32, 16, device="cuda", dtype=dtype), torch.ones(16, 16, device="cuda")
            accumulate(ones, ones, total)
            if not torch.equal(total, torch.full_like(total, 33)):
                return f"gives wrong sums with torch {torch.__version__}"
    except Exception as error:  # a kernel that a device or a version has not got fails in many ways
        return f"fails with torch {torch.__version__} ({first_line(error)})"
    megatron.accumulate_weight_gradients_with(accumulate)
    return None


def accumulate(input_ti: torch.Tensor, gradient_to: torch.Tensor, total_oi: torch.Tensor) -> None:
    """Add `gradient^T @ input`, in half precision, to an FP32 sum."""
    torch.addmm(total_oi, gradient_to.t(), input_ti, out_dtype=torch.float32, out=total_oi)


def _norm(chunk_size: int, flag: Any, lists: list[list[torch.Tensor]], per_tensor: bool, *_: Any) -> Any:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(lists[0]))).unsqueeze(0), None


def _scale(chunk_size: int, flag: Any, lists: list[list[torch.Tensor]], scale: float) -> None:
    sources, targets = lists
    # Clipping scales gradients in their place: to copy them there would be two passes over all of them.
    if sources is not targets:
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, scale)
