"""Which fused kernels of torch_npu work on this device: tried, not looked up, as documents disagree about the 910A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_kaiyuan.platform.base import RmsNorm, first_line

# By precision: its type, and how far a kernel may be from the result in FP32, as `atol` and `rtol` of allclose.
_TYPES = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 3e-2), "fp16": (torch.float16, 4e-3)}


def has_kernel(operator: str) -> bool:
    """Whether torch_npu registered a kernel of a torch operator, such as `aten::_fused_adamw_`.

    Without one the call would be computed on the host, copies of all tensors included.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, "PrivateUse1")


def probe_rms_norm(torch_npu: Any, device: torch.device, precisions: Sequence[str]) -> tuple[RmsNorm | None, str]:
    """torch_npu's fused RMSNorm if it agrees with torch's, forward and backward, in every precision of the device.

    Returns:
        The kernel, or None; and a phrase that says why.
    """
    kernel = getattr(torch_npu, "npu_rms_norm", None)
    if kernel is None:
        return None, "torch_npu has no npu_rms_norm"

    def npu_rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return kernel(values, weight, epsilon=epsilon)[0]

    for precision in precisions:
        try:
            agrees = _agrees(npu_rms_norm, device, *_TYPES[precision])
        except Exception as error:  # an operator that a device has not got fails in many ways
            return None, f"npu_rms_norm fails in {precision} ({first_line(error)})"
        if not agrees:
            return None, f"npu_rms_norm differs from torch in {precision}"
    return npu_rms_norm, "npu_rms_norm agrees with torch, forward and backward"


def _agrees(fused: RmsNorm, device: torch.device, dtype: torch.dtype, tolerance: float) -> bool:
    # A generator of its own: a probe must not move the one that weights are drawn from.
    drawn = torch.Generator().manual_seed(0)
    values, weight, gradient = (torch.randn(shape, generator=drawn) for shape in ((4, 2, 256), (256,), (4, 2, 256)))

    def run(norm: RmsNorm, place: torch.device, kind: torch.dtype) -> list[torch.Tensor]:
        # Rounded before either side sees them, so that only the kernels differ.
        leaves = [part.to(dtype).to(place, kind, copy=True).requires_grad_() for part in (values, weight)]
        output = norm(leaves[0], leaves[1], 1e-6)
        output.backward(gradient.to(dtype).to(place, kind))
        return [part.detach().float().cpu() for part in (output, *(leaf.grad for leaf in leaves))]  # type: ignore[union-attr]

    expected = run(_in_fp32, torch.device("cpu"), torch.float32)
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance)
        for one, other in zip(run(fused, device, dtype), expected, strict=True)
    )


def _in_fp32(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(values, weight.shape, weight, epsilon)
