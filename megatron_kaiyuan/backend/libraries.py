"""Other libraries' kernels in the form of `operations`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_kaiyuan.backend import operations
from megatron_kaiyuan.platform.base import Fused

Norm = Callable[[torch.Tensor, torch.Tensor, float, torch.dtype], torch.Tensor]


def torch_norm(input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """`operations.rms_norm`, on a GPU by torch's own kernel, which saves the same."""
    # `is_cuda` is true of an NPU's tensors (transfer_to_npu), where torch has no kernel and saves four times as much.
    if input_h.device.type == "cuda" and input_h.dtype == weight_h.dtype == dtype:
        return torch.nn.functional.rms_norm(input_h, weight_h.shape, weight_h, epsilon)
    return operations.rms_norm(input_h, weight_h, epsilon, dtype)


def npu_norm(
    kernel: Fused, input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype
) -> torch.Tensor:
    """torch_npu's kernel, which takes one precision."""
    if input_h.dtype == dtype == weight_h.dtype:
        return kernel(input_h, weight_h, epsilon)
    return kernel(input_h.float(), weight_h.float(), epsilon).to(dtype)


def liger_norm() -> Norm:
    """Liger Kernel's RMSNorm; raises where it cannot be imported."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def norm(input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
        if dtype != input_h.dtype:
            return operations.rms_norm(input_h, weight_h, epsilon, dtype)
        # "gemma" rounds once, at the end. Not in place: the residual stream needs the gradient as well.
        return LigerRMSNormFunction.apply(input_h, weight_h, epsilon, 0.0, "gemma", False)

    return norm


def liger_swiglu() -> Callable[[torch.Tensor], torch.Tensor]:
    """Liger Kernel's SwiGLU of one tensor of gate and up; raises where it cannot be imported."""
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    def swiglu(gate_and_up_2f: torch.Tensor) -> torch.Tensor:
        # Its gradient has two dimensions.
        output_f = LigerFusedGateUpSiLUMulFunction.apply(gate_and_up_2f.flatten(0, -2))
        return output_f.unflatten(0, gate_and_up_2f.shape[:-1])

    return swiglu
