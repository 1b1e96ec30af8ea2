"""What repeated tokens are worth, against the published formula computed another way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.research.mixture.exposure import epochs, exposures


def test_once_is_worth_itself() -> None:
    shares = np.array([[0.7, 0.3], [0.1, 0.9]])
    found = exposures(shares, np.array([100.0, 90.0]), 100.0)
    np.testing.assert_allclose(found, np.column_stack((shares, [0.0, 0.0])))


@pytest.mark.parametrize(("repetitions", "worth"), [(1, 1.0), (4, 3.726), (16, 10.582), (44, 15.448)])
def test_repetitions_are_worth_less(repetitions: int, worth: float) -> None:
    """1 + R* (1 - exp(-(n - 1) / R*)) with R* = 15.39, from a table worked out by hand."""
    found = exposures(np.array([[1.0]]), np.array([10.0]), 10.0 * repetitions)
    assert found[0, 0] * repetitions == pytest.approx(worth, abs=2e-3)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.lists(st.floats(1.0, 1e12), min_size=6, max_size=6),
    st.floats(1.0, 1e13),
)
def test_rows_sum_to_one_and_nothing_is_worth_more_than_it_is(
    parts: list[float], tokens: list[float], budget: float
) -> None:
    shares = np.array([parts]) / sum(parts)
    unique = np.array(tokens[: len(parts)])
    found = exposures(shares, unique, budget)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all() and (found[:, :-1] <= shares + 1e-12).all()
    # More than all the epochs that ever pay is worth no more.
    assert (found[0, :-1] <= unique * (1 + 15.39) / budget + 1e-9).all()
    np.testing.assert_allclose(epochs(shares, unique, budget)[0], shares[0] * budget / unique)
