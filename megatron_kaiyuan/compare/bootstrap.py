"""Confidence intervals of means of autocorrelated series by the moving-block bootstrap.

Losses of steps that follow each other are alike, so that steps drawn one by one would make an interval too narrow.
Blocks of steps that follow each other are drawn instead (Künsch, Annals of Statistics 17, 1989, with blocks that wrap
around: Politis and Romano, 1992). How long they are the series decides (Politis and White, Econometric Reviews 23,
2004, with the correction of Patton, Politis and White, 2009).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.compare.intervals import LEVEL, NORMAL, Interval

Floats: TypeAlias = NDArray[np.float64]

# A series shorter than that has no interval.
FEWEST = 10
_REPLICATES = 2000
# A longer series is drawn as means of equal groups: the same mean, and less to draw.
_MOST_POINTS = 4096


def mean_interval(values: Floats, weights: Floats) -> Interval:
    """The weighted mean of a series in order, with the interval between quantiles of the bootstrap's means.

    Args:
        values: [n], finite. Of fewer than 10 the interval is not known.
        weights: [n], above 0.
    """
    count = len(values)
    mean = float(np.average(values, weights=weights)) if count else math.nan
    if count < FEWEST:
        return Interval(mean, points=count)
    values, weights = _grouped(values, weights)
    block = block_length(values)
    away = (replicates(values, weights, block) - mean) * _widening(len(values), block)
    low, high = mean + np.quantile(away, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(mean, float(low), float(high), count)


def _widening(count: int, block: int) -> float:
    """What a small number of blocks makes the quantiles too narrow by.

    The variance of blocks around the series' own mean lacks a share block / count, and of so few blocks quantiles are
    Student's, not the normal ones (expanded by Cornish and Fisher: Abramowitz and Stegun 26.7.5).
    """
    freedom = max(count / block - 1, 2.0)
    student = NORMAL + (NORMAL**3 + NORMAL) / (4 * freedom)
    student += (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / (96 * freedom**2)
    return student / NORMAL / math.sqrt(1 - block / count)


def replicates(values: Floats, weights: Floats, block: int) -> Floats:
    """Means of series drawn from this one in blocks [replicates]."""
    count = len(values)
    blocks = -(-count // block)
    starts = np.random.default_rng(0).integers(0, count, (_REPLICATES, blocks))
    sums = _sums_of_blocks(weights * values, block)[starts].sum(axis=1)
    return sums / _sums_of_blocks(weights, block)[starts].sum(axis=1)


def block_length(values: Floats) -> int:
    """The length of blocks that makes the bootstrap's variance of the mean best, from the series' autocovariances.

    Politis and White: (2 G^2 / D)^(1/3) n^(1/3) with G the sum of lambda(k/M) |k| R(k), D = 4/3 g(0)^2, g(0) the sum
    of lambda(k/M) R(k); lambda is flat up to 1/2 and falls to 0 at 1. M is twice the lag from which on the
    autocorrelations are small.
    """
    count = len(values)
    small_run = max(5, int(math.sqrt(math.log10(count))))
    most = min(math.ceil(math.sqrt(count)) + small_run, count - 1)
    covariances = _autocovariances(values, most)
    if covariances[0] <= 0:
        return 1
    bandwidth = _bandwidth(covariances / covariances[0], count, small_run, most)
    lags = np.arange(1, bandwidth + 1)
    weighted = np.minimum(1.0, 2 * (1 - lags / bandwidth)) * covariances[1 : bandwidth + 1]
    spectrum, slope = covariances[0] + 2 * weighted.sum(), 2 * (lags * weighted).sum()
    if spectrum <= 0:
        return 1
    best = (2 * slope**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * count ** (1 / 3)
    return int(np.clip(math.ceil(best), 1, max(1, min(3 * math.isqrt(count), count // 3))))


def _grouped(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    starts = np.arange(0, len(values), -(-len(values) // _MOST_POINTS))
    grouped = np.add.reduceat(weights, starts)
    return np.add.reduceat(weights * values, starts) / grouped, grouped


def _sums_of_blocks(values: Floats, block: int) -> Floats:
    """Sum of each block by its start [n]; blocks wrap around."""
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:block]]))])
    return sums[block : block + len(values)] - sums[: len(values)]


def _autocovariances(values: Floats, most: int) -> Floats:
    """R(0) to R(most)."""
    centred = values - values.mean()
    return np.array([centred[lag:] @ centred[: len(centred) - lag] for lag in range(most + 1)]) / len(values)


def _bandwidth(correlations: Floats, count: int, small_run: int, most: int) -> int:
    """Twice the last lag before `small_run` correlations in a row that are as small as those of noise."""
    small = np.abs(correlations[1:]) < 2 * math.sqrt(math.log10(count) / count)
    for lag in range(len(small) - small_run + 1):
        if small[lag : lag + small_run].all():
            return min(2 * max(lag, 1), most)
    large = np.flatnonzero(~small)
    return min(2 * int(large[-1] + 1), most) if len(large) else 1
