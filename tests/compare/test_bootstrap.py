"""Intervals of autocorrelated series: how often they hold the mean, and the formulas they have to agree with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_kaiyuan.compare.bootstrap import _sums_of_blocks, block_length, mean_interval, replicates


def autoregressive(drawn: np.random.Generator, length: int, rho: float) -> np.ndarray:
    """x[t] = rho x[t - 1] + noise, which has mean 0."""
    noise = drawn.normal(size=length)
    series = np.empty(length)
    series[0] = noise[0] / math.sqrt(1 - rho**2)
    for step in range(1, length):
        series[step] = rho * series[step - 1] + noise[step]
    return series


def deviation_of_mean(length: int, rho: float) -> float:
    """Standard deviation of the mean of such a series, in closed form."""
    lags = np.arange(1, length)
    return math.sqrt((1 + 2 * ((1 - lags / length) * rho**lags).sum()) / (1 - rho**2) / length)


@pytest.mark.parametrize(("length", "rho", "least"), [(200, 0.0, 0.92), (200, 0.5, 0.86), (1000, 0.8, 0.88)])
def test_the_interval_holds_the_mean_as_often_as_it_says(length: int, rho: float, least: float) -> None:
    """Of 95 in 100; fewer where few blocks are independent. Steps taken as independent hold it far less often."""
    drawn = np.random.default_rng(1)
    held, independent, rounds = 0, 0, 250
    for _ in range(rounds):
        series = autoregressive(drawn, length, rho)
        interval = mean_interval(series, np.ones(length))
        held += interval.low <= 0 <= interval.high
        independent += abs(series.mean()) < 1.96 * series.std() / math.sqrt(length)
    assert least <= held / rounds <= 0.99
    assert rho == 0 or held / rounds > independent / rounds + 0.08


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_the_width_is_that_of_the_formula(rho: float) -> None:
    drawn, length = np.random.default_rng(2), 4000
    found = []
    for _ in range(8):
        series = autoregressive(drawn, length, rho)
        found.append(replicates(series, np.ones(length), block_length(series)).std())
    assert np.mean(found) == pytest.approx(deviation_of_mean(length, rho), rel=0.1)


# The package arch (8.0), which counts the lag from which on correlations are small one higher than the paper.
@pytest.mark.parametrize(
    ("seed", "length", "rho", "of_arch"),
    [(0, 100, 0.0, 1.62), (1, 300, 0.5, 4.90), (2, 1000, 0.8, 19.04), (3, 400, -0.4, 10.81), (4, 2000, 0.95, 79.92)],
)
def test_blocks_are_as_long_as_another_package_makes_them(seed: int, length: int, rho: float, of_arch: float) -> None:
    noise = np.random.default_rng(seed).normal(size=length)
    series = np.empty(length)
    series[0] = noise[0]
    for step in range(1, length):
        series[step] = rho * series[step - 1] + noise[step]
    assert abs(block_length(series) - of_arch) <= 2


def test_replicates_are_weighted_means_of_whole_blocks() -> None:
    values, weights = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0, 4.0])
    assert _sums_of_blocks(values, 3).tolist() == [7, 14, 13, 11]
    assert set(replicates(values, weights, 4)) == {np.average(values, weights=weights)}
    possible = {
        np.average(values[[a, b, c, d]]) for a in range(4) for b in range(4) for c in range(4) for d in range(4)
    }
    assert set(replicates(values, np.ones(4), 1)) <= possible


def test_a_long_series_is_grouped_without_a_change_of_its_mean() -> None:
    drawn = np.random.default_rng(3)
    values, weights = drawn.normal(5, 1, 50_001), drawn.integers(1, 10, 50_001).astype(float)
    interval = mean_interval(values, weights)
    assert interval.value == np.average(values, weights=weights) and interval.points == 50_001
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 / math.sqrt(effective), rel=0.15)


@pytest.mark.parametrize("length", [0, 1, 9])
def test_a_short_series_has_no_interval(length: int) -> None:
    interval = mean_interval(np.arange(float(length)), np.ones(length))
    assert not interval.known and (length == 0 or interval.value == (length - 1) / 2)


@pytest.mark.parametrize("length", [10, 11, 64, 5000])
def test_a_constant_series_has_an_interval_of_no_width(length: int) -> None:
    interval = mean_interval(np.full(length, 2.5), np.ones(length))
    assert (interval.value, interval.low, interval.high) == (2.5, 2.5, 2.5)
