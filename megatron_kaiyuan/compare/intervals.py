"""Estimates with confidence intervals, and the interval of a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
# Standard errors that an interval reaches to each side, where the estimate is distributed normally.
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Interval:
    """An estimate and where it may lie.

    Attributes:
        low, high: of the interval that holds it with `LEVEL`; NaN: not known.
        points: values that it is a mean of.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    points: int = 1

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def holds_zero(self) -> bool:
        """Whether the interval cannot tell the value from zero."""
        return self.low <= 0 <= self.high


def normal_interval(value: float, standard_error: float, points: int) -> Interval:
    """The interval of an estimate that is distributed normally."""
    return Interval(value, value - NORMAL * standard_error, value + NORMAL * standard_error, points)


def wilson_interval(share: float, count: int) -> Interval:
    """The interval of a share of `count` independent trials (Wilson, JASA 22, 1927)."""
    shrunk = 1 + NORMAL**2 / count
    middle = (share + NORMAL**2 / (2 * count)) / shrunk
    half = NORMAL / shrunk * math.sqrt(share * (1 - share) / count + NORMAL**2 / (4 * count**2))
    # The bounds of 0 and 1 are themselves, but for rounding.
    return Interval(share, min(middle - half, share), max(middle + half, share), count)


def difference(one: Interval, other: Interval) -> Interval:
    """`one` less `other`, two estimates of independent data.

    From the two intervals (Newcombe, Statistics in Medicine 17, 1998, method 10; Zou and Donner, 2008): exact where
    both are normal, and kept inside what shares can be.
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - below, value + above, min(one.points, other.points))
