"""What a chip of the first generation (Ascend 910A) computes otherwise: saturation, a register, products from FP16.

No infinity and no NaN comes out of its arithmetic: infinities become the largest number, NaN becomes 0, and a register,
the float status, keeps that it happened until it is cleared. Which of its operators set the register for operands that
are infinite already is documented nowhere; here all do that compute anything, which is the strictest reading. What
only moves elements computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

_FLOATS = (torch.float16, torch.float32)
_LARGEST_HALF = 65504.0
# Between elements of one type; a copy into another type is arithmetic.
_MOVES = {
    "_to_copy", "as_strided_copy", "cat", "clone", "contiguous", "copy_", "embedding", "expand_copy", "fill_",
    "flip", "full", "full_like", "gather", "index", "index_select", "lift_fresh_copy", "masked_fill",
    "masked_fill_", "new_full", "new_ones", "new_zeros", "npu_format_cast", "ones", "ones_like", "repeat",
    "repeat_interleave", "roll", "scalar_tensor", "scatter", "scatter_", "select_backward", "slice_backward",
    "split_copy", "stack", "tril", "triu", "unbind_copy", "where", "zero_", "zeros", "zeros_like",
}  # fmt: skip
# Which operands of a product are its matrices.
_PRODUCTS = {
    "addmm": (1, 2), "addmm_": (1, 2), "addmv": (1, 2), "baddbmm": (1, 2), "baddbmm_": (1, 2), "bmm": (0, 1),
    "convolution": (0, 1), "dot": (0, 1), "linear": (0, 1), "linear_backward": (0, 1, 2), "matmul": (0, 1),
    "matmul_backward": (0, 1, 2), "mm": (0, 1), "mv": (0, 1),
}  # fmt: skip
REGISTER = (
    "npu::npu_clear_float_status",
    "npu::npu_get_float_status",
    "aten::_amp_foreach_non_finite_check_and_unscale_",
)


class FloatStatus:
    """The register of one device.

    Attributes:
        set_by: the operators that have set it, in order, over the whole run.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.set_by: list[str] = []

    def set(self, operator: str) -> None:
        self.is_set = True
        self.set_by.append(operator)


def of_the_register(status: FloatStatus) -> dict[str, Callable[..., Any]]:
    """What the operators in `REGISTER` compute."""

    def clear(values: torch.Tensor, *_: Any) -> torch.Tensor:
        status.is_set = False
        return torch.zeros(8)

    def get(values: torch.Tensor, *_: Any) -> torch.Tensor:
        # It is written into the tensor that is handed in, too.
        values[0] = float(status.is_set)
        return values

    def check_and_unscale(gradients: list[torch.Tensor], found: torch.Tensor, inverse_scale: torch.Tensor) -> None:
        if status.is_set:
            status.is_set = False
            found.fill_(1)
            return
        for gradient in gradients:
            gradient.mul_(inverse_scale)

    return dict(zip(REGISTER, (clear, get, check_and_unscale), strict=True))


def rounded_operands(operator: str, operands: Sequence[Any], status: FloatStatus) -> list[Any]:
    """The operands that the cube sees: the matrices of a product are FP16, whatever they were."""
    found = list(operands)
    for position in _PRODUCTS.get(_short(operator), ()):
        matrix = found[position]
        if matrix.dtype == torch.float32:
            if not bool((matrix.abs() <= _LARGEST_HALF).all()):
                status.set(f"{operator} (operand beyond FP16)")
            found[position] = matrix.nan_to_num(0.0).clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
    return found


def saturate(operator: str, operands: Sequence[Any], results: Sequence[Any], status: FloatStatus) -> None:
    """Replace what is not finite in the results, in place, and set the register for it."""
    inputs, outputs = ([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] for leaves in (operands, results))
    types = {tensor.dtype for tensor in (*inputs, *outputs) if tensor.dtype in _FLOATS}
    if _short(operator) in _MOVES and len(types) <= 1:
        return
    if not all(map(_finite, (*inputs, *outputs))):
        status.set(operator)
    saturate_in_place(outputs)


def saturate_in_place(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        if not _finite(tensor):
            largest = torch.finfo(tensor.dtype).max
            tensor.copy_(tensor.nan_to_num(0.0, largest, -largest))


def _short(operator: str) -> str:
    return operator.partition("::")[2].partition(".")[0]


def _finite(tensor: torch.Tensor) -> bool:
    return tensor.dtype not in _FLOATS or bool(tensor.isfinite().all())
