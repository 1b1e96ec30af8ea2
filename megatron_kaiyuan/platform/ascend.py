"""Ascend chips by name: everything that differs from one chip to another is decided here.

Names are those of `torch_npu.npu.get_device_name()`, which asks CANN (aclrtGetSocName). Sources: torch_npu 2.13's
NpuVariables.cpp, which draws the same line at Ascend910B1; op-plugin's kernels and CANN's ops-nn for what each has.
"""

from __future__ import annotations

from dataclasses import dataclass

# Atlas training series. "Ascend910B" without a digit belongs to it; Ascend910B1 and later ones do not.
FIRST_GENERATION = ("Ascend910A", "Ascend910B", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA")


@dataclass(frozen=True)
class Chip:
    """What a kind of chip has.

    Attributes:
        name: as its driver calls it, such as `Ascend910A` or `Ascend910B3`.
    """

    name: str

    @property
    def first_generation(self) -> bool:
        """A 910A or one of its relatives: no BF16, overflows saturate, operators are compiled when first called."""
        return self.name in FIRST_GENERATION

    @property
    def has_fused_adamw(self) -> bool:
        """CANN has a kernel of ApplyAdamWV2. torch_npu registers `aten::_fused_adamw_` for every chip."""
        return not self.first_generation

    @property
    def has_fused_attention(self) -> bool:
        """torch's attention runs FlashAttention here, else the formula, which keeps the scores of all pairs."""
        return not self.first_generation

    @property
    def products_round_fp32(self) -> bool:
        """The cube unit takes FP16 inputs only: products of FP32 matrices are computed from rounded ones."""
        return self.first_generation

    @property
    def compiles_operators(self) -> bool:
        """torch_npu's jit_compile is on by default, and has to stay on.

        Without it gather, scatter_add and repeat_interleave take their aclnn forms, which CANN does not support here.
        """
        return self.first_generation

    @property
    def tries(self) -> tuple[str, ...]:
        """Operations whose kernel in torch_npu is tried on the device; documents disagree about the norm's.

        npu_swiglu is not supported on the first generation, say op-plugin and ops-nn alike.
        """
        return ("norm",) if self.first_generation else ("norm", "swiglu")
