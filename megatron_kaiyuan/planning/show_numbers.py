"""Numbers, times and spans of a plan as people read them: never with an exponent, nor rounded to nothing."""

from __future__ import annotations

import math

from megatron_kaiyuan.planning.plan import Plan

_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def digits(value: float, count: int) -> str:
    """A number of zero or more with at least so many digits that count; what is before the point is never rounded."""
    rounded = float(f"{value:.{count - 1}e}")
    after = count - 1 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:,.{max(0, after)}f}"


def unit_of(seconds: float) -> tuple[str, int]:
    """Name and seconds of the largest unit of which there is one; else of the second."""
    return next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])


def duration(seconds: float) -> str:
    """Two digits and a unit; of less than a hundredth of a second only that."""
    if 0 < seconds < 0.01:
        return "less than 0.01 seconds"
    name, size = unit_of(seconds)
    return f"{digits(seconds / size, 2)} {name}"


def span(plan: Plan, value: float, count: int) -> str:
    """The least and the most that a planned time may turn out to be, in brackets; nothing where that is not known."""
    if plan.spread is None:
        return ""
    low, high = (digits(value * part, count) for part in plan.spread)
    return f" ({low}-{high})"


def with_span(plan: Plan, value: float, unit: str = "") -> str:
    """Three digits of a value that grows with the time, its unit, and its span."""
    return f"{digits(value, 3)} {unit}".rstrip() + span(plan, value, 3)
