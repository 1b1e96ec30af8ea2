from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.optim.average import equal_mean


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9))
def test_is_the_mean(values: list[float]) -> None:
    found = equal_mean({"a": torch.tensor([value, -value])} for value in values)["a"]
    expected = torch.tensor([sum(values) / len(values)], dtype=torch.float64).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.cat([expected, -expected]))


def test_half_precision_checkpoints_are_summed_exactly() -> None:
    weights = [{"a": torch.tensor([60000.0]).half()} for _ in range(8)]
    assert equal_mean(weights)["a"].item() == weights[0]["a"].item()


def test_needs_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        equal_mean([])
