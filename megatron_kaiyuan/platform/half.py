"""Half precision on CPUs that have no instructions for it: products in FP32, rounded once.

torch multiplies such matrices without blocks or vectors there. On two cores with AVX2 (2,048 x 3,072 by 3,072 x 512) it
takes 60 ms in FP32 and, as memory lies, 0.4 to 8 s in BF16 or FP16. A product of two half-precision numbers is exact in
FP32, and sums are taken in FP32 either way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from megatron_kaiyuan.platform.precisions import DTYPES


def emulated() -> tuple[str, ...]:
    """The half precisions that oneDNN, and so torch, has no instructions for on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return ()
    kernels = torch.ops.mkldnn
    has = {"bf16": kernels._is_mkldnn_bf16_supported, "fp16": kernels._is_mkldnn_fp16_supported}
    return tuple(name for name, supported in has.items() if not supported())


def multiply_in_fp32(precisions: Sequence[str]) -> None:
    """Let `Tensor.matmul`, which megatron-core's linears call, compute in FP32 for the whole process."""
    dtypes = {DTYPES[name] for name in precisions}
    matmul = torch.Tensor.matmul

    @functools.wraps(matmul)
    def multiply(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.dtype in dtypes and self.device.type == "cpu":
            return matmul(self.float(), other.float()).to(self.dtype)
        return matmul(self, other)

    torch.Tensor.matmul = multiply  # type: ignore[assignment,method-assign]
