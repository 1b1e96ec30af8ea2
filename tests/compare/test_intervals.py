from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megatron_kaiyuan.compare.intervals import Interval, difference, normal_interval, wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (3, 10), (250, 1000), (1, 1)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    found = wilson_interval(right / count, count)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


@given(st.floats(-5, 5), st.floats(1e-3, 3), st.floats(-5, 5), st.floats(1e-3, 3))
def test_the_difference_of_normal_estimates_is_normal(one: float, its: float, other: float, of_other: float) -> None:
    found = difference(normal_interval(one, its, 9), normal_interval(other, of_other, 8))
    low, high = stats.norm(one - other, math.hypot(its, of_other)).interval(0.95)
    assert (found.low, found.high, found.points) == (pytest.approx(low), pytest.approx(high), 8)


# Newcombe 1998, table II, case (a): 56/70 and 48/80 by method 10.
def test_the_difference_of_shares_is_newcombes() -> None:
    found = difference(wilson_interval(56 / 70, 70), wilson_interval(48 / 80, 80))
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.2),
        pytest.approx(0.0524, abs=5e-5),
        pytest.approx(0.3339, abs=5e-5),
    )


def test_an_unknown_interval_stays_unknown() -> None:
    assert not difference(Interval(1.0), normal_interval(2.0, 0.1, 5)).known
