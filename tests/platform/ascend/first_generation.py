"""What a chip of the first generation (Ascend 910A) computes otherwise: saturation, a register, products from FP16.

No infinity and no NaN comes out of its arithmetic: infinities become the largest number, NaN becomes 0, and a register,
the float status, keeps that it happened until it is cleared. Which of its operators set the register for operands that
are infinite already is documented nowhere; here all do that compute anything, which is the strictest reading. What
only moves elements computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._pytree import tree_leaves

_FLOATS = (torch.float16, torch.float32)
_LARGEST_HALF = 65504.0
# Between elements of one type; a copy into another type is arithmetic.
_MOVES = {
    "_to_copy", "as_strided_copy", "cat", "clone", "contiguous", "copy_", "embedding", "expand_copy", "fill_", "flip",
    "full", "full_like", "gather", "index", "index_select", "lift_fresh_copy", "masked_fill", "masked_fill_",
    "new_full", "new_ones", "new_zeros", "ones", "ones_like", "repeat", "repeat_interleave", "roll", "scalar_tensor",
    "scatter", "scatter_", "select_backward", "slice_backward", "split_copy", "stack", "tril", "triu", "unbind_copy",
    "where", "zero_", "zeros", "zeros_like",
}  # fmt: skip
_PRODUCTS = {
    "addmm", "addmm_", "addmv", "baddbmm", "bmm", "convolution", "dot", "linear", "linear_backward", "matmul",
    "matmul_backward", "mm", "mv",
}  # fmt: skip


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


def rounded_operands(operator: str, operands: object, status: FloatStatus) -> object:
    """The operands that the cube sees: those of a product are FP16, whatever they were."""
    name = operator.partition("::")[2].partition(".")[0]
    if name not in _PRODUCTS:
        return operands

    def rounded(value: object) -> object:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not bool((value.abs() <= _LARGEST_HALF).all()):
            status.set(f"{operator} (operand beyond FP16)")
        return value.nan_to_num(0.0).clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()

    return torch.utils._pytree.tree_map(rounded, operands)


def saturate(operator: str, operands: Iterable[object], results: object, status: FloatStatus) -> None:
    """Replace what is not finite in the results, in place, and set the register for it."""
    outputs = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
    inputs = [leaf for leaf in operands if isinstance(leaf, torch.Tensor)]
    if _only_moves(operator, inputs, outputs):
        return
    if not all(map(_finite, inputs)) or not all(map(_finite, outputs)):
        status.set(operator)
    for output in outputs:
        if not _finite(output):
            largest = torch.finfo(output.dtype).max
            output.copy_(output.nan_to_num(0.0, largest, -largest))


def _only_moves(operator: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> bool:
    name = operator.partition("::")[2].partition(".")[0]
    types = {tensor.dtype for tensor in (*inputs, *outputs) if tensor.dtype in _FLOATS}
    return name in _MOVES and len(types) <= 1


def _finite(tensor: torch.Tensor) -> bool:
    return tensor.dtype not in _FLOATS or bool(tensor.isfinite().all())
