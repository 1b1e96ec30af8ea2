"""Which Ascend chips are of the first generation."""

from __future__ import annotations

import pytest

from megatron_kaiyuan.platform.ascend import Chip


@pytest.mark.parametrize("name", ["Ascend910A", "Ascend910B", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA"])
def test_the_first_generation(name: str) -> None:
    chip = Chip(name)
    assert chip.first_generation and chip.compiles_operators and chip.products_round_fp32
    assert not chip.has_fused_adamw and not chip.has_fused_attention and chip.tries == ("norm",)


@pytest.mark.parametrize("name", ["Ascend910B1", "Ascend910B2C", "Ascend910B4-1", "Ascend910_9391", "Ascend950PR"])
def test_later_ones(name: str) -> None:
    chip = Chip(name)
    assert not chip.first_generation and not chip.compiles_operators and not chip.products_round_fp32
    assert chip.has_fused_adamw and chip.has_fused_attention and chip.tries == ("norm", "swiglu")
