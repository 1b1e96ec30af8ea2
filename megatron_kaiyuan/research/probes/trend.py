"""What paired runs say about windows: which differ, whether a measure rises or falls with the quantile, or nothing.

Y[w, s], a measure of window w under seed s, is taken as mean + window + seed + noise. A seed's runs share their
initialisation, batches and schedule, so that its part is common to all windows and falls out of every difference. The
noise variance is pooled over all windows (randomised blocks, two-way analysis of variance without interaction):
SS / ((W - 1)(S - 1)). The standard deviation of a paired difference is sqrt(2) times the noise's.

Two tests, each at half of the level, so that windows which do not differ are called something with at most the level:

- a linear contrast of the window means along the quantile, Student's t, two-sided: rising or falling;
- lack of monotonicity: S * sum (mean_w - fit_w)^2 / noise variance, with the best non-decreasing fit and with the best
  non-increasing one. The largest chances under any monotone truth are those of equal windows (Robertson, Wright and
  Dykstra, Order Restricted Statistical Inference, 1988, section 2.3), which are simulated. Where both fits are too bad
  to be chance, the measure is not monotone in the quantile.

Shapes: W windows, S seeds, N simulated experiments.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

TrendVerdict = Literal["rising", "falling", "not monotone", "cannot tell"]
Matrix: TypeAlias = NDArray[np.float64]

_SIMULATED, _SEED = 20_000, 20251130


@dataclass(frozen=True)
class Noise:
    """Noise of one run, which seeds do not share.

    Attributes:
        variance: of one run.
        freedom: degrees of freedom that it was estimated with.
    """

    variance: float
    freedom: int

    @property
    def paired_sd(self) -> float:
        """Standard deviation of the difference of two runs of one seed."""
        return math.sqrt(2 * self.variance)


@dataclass(frozen=True)
class Trend:
    """What a measure does along the quantiles of one dataset.

    Attributes:
        slope: of the measure, by one unit of the quantile.
        p_linear: that a slope so far from zero is chance.
        p_not_rising, p_not_falling: that a distance so large from every rising (falling) course is chance.
        detectable: difference between the first and the last window of a straight course that is found with 80 %.
    """

    verdict: TrendVerdict
    slope: float
    p_linear: float
    p_not_rising: float
    p_not_falling: float
    detectable: float


def pooled_noise(values_ws: Matrix) -> Noise:
    """The noise of a table of W windows and S seeds, two of each at least."""
    windows, seeds = values_ws.shape
    residuals = values_ws - values_ws.mean(1, keepdims=True) - values_ws.mean(0, keepdims=True) + values_ws.mean()
    freedom = (windows - 1) * (seeds - 1)
    return Noise(float((residuals**2).sum() / freedom), freedom)


def noise_between_windows(means_w: Matrix, quantiles_w: Matrix, seeds: int) -> Noise:
    """Noise from the distance of the window means from a straight line, as that of one run, W - 2 degrees of freedom.

    For windows whose seeds all saw the same documents: which ones a window happens to hold is noise as well, and no
    seed shows it.
    """
    slope, intercept = np.polyfit(quantiles_w, means_w, 1)
    residuals = means_w - intercept - slope * quantiles_w
    freedom = len(means_w) - 2
    return Noise(float((residuals**2).sum() / freedom * seeds), freedom)


def half_width(noise: Noise, seeds: int, level: float, of_difference: bool = False) -> float:
    """Half of the interval of a window mean, or of the difference of two, that holds it with 1 - level.

    Without what is common to all windows under a seed: an interval to compare windows with, not to quote a mean.
    """
    variance = noise.variance * (2 if of_difference else 1) / seeds
    return float(stats.t.ppf(1 - level / 2, noise.freedom)) * math.sqrt(variance)


def judge(means_w: Matrix, quantiles_w: Matrix, seeds: int, noise: Noise, level: float, tests: int = 1) -> Trend:
    """What the means of W >= 3 windows do along their quantiles.

    Args:
        quantiles_w: distinct, ascending.
        level: chance that windows which do not differ are called anything but `cannot tell`, in any of the tests.
        tests: how many such questions are asked together (Bonferroni).
    """
    centred = quantiles_w - quantiles_w.mean()
    spread = float((centred**2).sum())
    slope = float((centred * means_w).sum() / spread)
    error = math.sqrt(noise.variance / seeds / spread)
    p_linear = 2 * float(stats.t.sf(abs(slope) / error, noise.freedom)) if error else float(slope == 0)
    p_rising, p_falling = _p_monotone(means_w, seeds, noise)
    each = level / tests / 2
    verdict: TrendVerdict = "cannot tell"
    if max(p_rising, p_falling) < each:
        verdict = "not monotone"
    elif p_linear < each:
        verdict = "rising" if slope > 0 else "falling"
    detectable = detectable_range(quantiles_w, seeds, noise, level / tests)
    return Trend(verdict, slope, p_linear, p_rising, p_falling, detectable)


def detectable_range(quantiles_w: Matrix, seeds: int, noise: Noise, level: float, power: float = 0.8) -> float:
    """Difference between first and last window of a straight course that `judge` finds with probability `power`."""
    centred = quantiles_w - quantiles_w.mean()
    unit = math.sqrt(float((centred**2).sum()) * seeds / noise.variance) / float(np.ptp(quantiles_w))
    return _noncentrality(level / 2, noise.freedom, power) / unit


def detectable_difference(seeds: int, noise: Noise, level: float, power: float = 0.8) -> float:
    """Difference of two windows that a paired t test with the pooled noise finds with probability `power`."""
    return _noncentrality(level, noise.freedom, power) * math.sqrt(2 * noise.variance / seeds)


def isotonic(values: Matrix) -> Matrix:
    """The closest non-decreasing course of each row of values [N, W], by the max-min formula."""
    width = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    fit = np.empty_like(values)
    for at in range(width - 1, -1, -1):
        starts, ends = np.arange(at + 1), np.arange(at, width)
        averages = (sums[:, None, ends + 1] - sums[:, starts, None]) / (ends + 1 - starts[:, None])
        fit[:, at] = averages.min(2).max(1)
    return fit


def _p_monotone(means_w: Matrix, seeds: int, noise: Noise) -> tuple[float, float]:
    """Chances of a distance so large from the best rising and from the best falling course, of equal windows."""
    if not noise.variance:
        return 1.0, 1.0
    simulated = _simulated(len(means_w), noise.freedom)

    def chance(values_w: Matrix) -> float:
        found = float(_distance(values_w[None])[0]) * seeds / noise.variance
        # Of the simulated ones and the one that was seen.
        return (1 + _SIMULATED - int(np.searchsorted(simulated, found))) / (_SIMULATED + 1)

    return chance(means_w), chance(-means_w)


@functools.cache
def _simulated(windows: int, freedom: int) -> Matrix:
    """Distances of equal windows from their best rising course, over the noise variance, ascending."""
    drawn = np.random.default_rng(_SEED)
    distances = _distance(drawn.standard_normal((_SIMULATED, windows)))
    return np.sort(distances / (drawn.chisquare(freedom, _SIMULATED) / freedom))


def _distance(values: Matrix) -> Matrix:
    return ((values - isotonic(values)) ** 2).sum(1)


def _noncentrality(level: float, freedom: int, power: float) -> float:
    """Of Student's t, with which a two-sided test at the level succeeds with the probability."""
    critical = float(stats.t.ppf(1 - level / 2, freedom))
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, freedom, shift) - power, 0, 20 * critical))
