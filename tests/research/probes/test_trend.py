"""The trend test against simulated truth, and its parts against SciPy and statistics by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from megatron_kaiyuan.research.probes.trend import (
    Noise,
    detectable_difference,
    detectable_range,
    half_width,
    isotonic,
    judge,
    noise_between_windows,
    pooled_noise,
)

QUANTILES = np.array([0.0, 0.15, 0.30, 0.45, 0.60, 0.75])
SEEDS = 3
# Seeds differ more than windows under a seed do, as measured on small networks.
SEED_SD, RUN_SD = 0.025, 0.006


def experiments(course: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Values [N, W, S] whose windows follow a course."""
    drawn = np.random.default_rng(seed)
    shared = drawn.normal(0, SEED_SD, (count, 1, SEEDS))
    return 3.0 + course[None, :, None] + shared + drawn.normal(0, RUN_SD, (count, len(course), SEEDS))


def verdicts(course: np.ndarray, count: int, seed: int, level: float = 0.05) -> Counter[str]:
    return Counter(
        judge(values.mean(1), QUANTILES, SEEDS, pooled_noise(values), level).verdict
        for values in experiments(course, count, seed)
    )


def test_windows_that_do_not_differ_cannot_be_told() -> None:
    found = verdicts(np.zeros(6), 600, seed=1)
    # The level is 5 %: at most 95 of 100 is promised, with the spread of 600 experiments.
    assert found["cannot tell"] >= 600 * 0.95 - 2 * np.sqrt(600 * 0.05 * 0.95)
    # And it is used, not hidden behind a level of nothing.
    assert found["cannot tell"] < 600 * 0.999


def test_a_planted_trend_is_found_as_often_as_is_said() -> None:
    noise = Noise(RUN_SD**2, 10)
    course = (QUANTILES / 0.75) * detectable_range(QUANTILES, SEEDS, noise, 0.05)
    found = verdicts(course, 400, seed=2)
    # Power 80 % is for the true noise; it is estimated with 10 degrees of freedom, as the test allows for.
    assert 400 * 0.74 < found["rising"] < 400 * 0.86
    assert found["falling"] == 0
    assert 400 * 0.74 < verdicts(-course, 400, seed=2)["falling"] < 400 * 0.86
    assert verdicts(3 * course, 100, seed=3) == {"rising": 100}


def test_a_hump_is_not_monotone_and_a_monotone_bend_is_not_called_so() -> None:
    hump = 0.05 * np.array([0, 0.6, 1.0, 1.0, 0.6, 0.0])
    assert verdicts(hump, 200, seed=4)["not monotone"] >= 198
    bend = 0.06 * (QUANTILES / 0.75) ** 4
    found = verdicts(bend, 400, seed=5)
    assert found["not monotone"] <= 400 * 0.025 + 2 * np.sqrt(400 * 0.025)
    assert found["rising"] >= 380


def test_several_measures_together_keep_the_level() -> None:
    """Five measures of one dataset: an answer in which any is called something is wrong."""
    wrong = 0
    for seed in range(200):
        measures = experiments(np.zeros(6), 5, seed=1000 + seed)
        judged = [judge(one.mean(1), QUANTILES, SEEDS, pooled_noise(one), 0.05, tests=5).verdict for one in measures]
        wrong += any(verdict != "cannot tell" for verdict in judged)
    assert wrong <= 200 * 0.05 + 2 * np.sqrt(200 * 0.05)


def test_documents_that_seeds_share_are_noise_between_windows() -> None:
    """One sample of documents a window: seeds agree on differences that are the sample's, not the quantile's."""
    drawn = np.random.default_rng(6)
    by_seeds: list[str] = []
    by_windows: list[str] = []
    for _ in range(300):
        values = experiments(drawn.normal(0, 0.012, 6), 1, int(drawn.integers(1 << 30)))[0]
        means = values.mean(1)
        by_seeds.append(judge(means, QUANTILES, SEEDS, pooled_noise(values), 0.05).verdict)
        noise = noise_between_windows(means, QUANTILES, SEEDS)
        by_windows.append(judge(means, QUANTILES, SEEDS, noise, 0.05).verdict)
    assert by_seeds.count("cannot tell") < 200
    assert by_windows.count("cannot tell") >= 300 * 0.95 - 2 * np.sqrt(300 * 0.05)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=5, max_size=5), min_size=1, max_size=4))
def test_isotonic_is_scipys(rows: list[list[float]]) -> None:
    found = isotonic(np.array(rows))
    for row, fit in zip(rows, found, strict=True):
        assert fit == pytest.approx(optimize.isotonic_regression(row).x, abs=1e-9)


def test_noise_and_intervals_by_hand() -> None:
    values = experiments(np.zeros(2), 1, seed=7)[0]
    noise = pooled_noise(values)
    # Of two windows it is the paired t test.
    paired = stats.ttest_rel(values[0], values[1])
    assert noise.freedom == paired.df
    assert noise.paired_sd == pytest.approx(np.std(values[0] - values[1], ddof=1))
    low, high = paired.confidence_interval(0.95)
    assert half_width(noise, SEEDS, 0.05, of_difference=True) == pytest.approx((high - low) / 2)


def test_the_slope_and_its_chance_are_those_of_a_regression() -> None:
    drawn = np.random.default_rng(8)
    means = 3 + 0.02 * QUANTILES + drawn.normal(0, 0.01, 6)
    line = stats.linregress(QUANTILES, means)
    trend = judge(means, QUANTILES, SEEDS, noise_between_windows(means, QUANTILES, SEEDS), 0.05)
    assert (trend.slope, trend.p_linear) == (pytest.approx(line.slope), pytest.approx(line.pvalue))


def test_detectable_difference_is_that_of_the_notes() -> None:
    """Six windows and three paired seeds, pooled: 1.8 standard deviations of a paired difference at 5 % and 80 %."""
    noise = Noise(0.5, 10)
    assert noise.paired_sd == 1
    assert detectable_difference(SEEDS, noise, 0.05) == pytest.approx(1.8, abs=0.05)
