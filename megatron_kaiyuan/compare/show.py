"""A comparison as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from megatron_kaiyuan.compare.compare import CAUTION, TIME, Comparison
from megatron_kaiyuan.compare.differences import FieldDifference
from megatron_kaiyuan.compare.intervals import Interval
from megatron_kaiyuan.compare.measures import Difference, Measure

_NONE = "–"


def as_text(comparison: Comparison) -> str:
    """All of it but the curves; differences are to the first run."""
    lines = [*_runs(comparison), "", *_measures(comparison)]
    names = [run.name for run in comparison.runs]
    for title, fields in (("configuration", comparison.configuration), ("environment", comparison.environment)):
        lines += ["", f"{title}: {len(fields)} fields differ" if fields else f"{title}: nothing differs"]
        lines += [f"  {line}" for field in fields for line in _field(field, names)]
    return "\n".join([*lines, "", *(f"note: {note}" for note in comparison.all_notes()), CAUTION, TIME])


def value_text(measure: Measure, interval: Interval | None) -> str:
    """The figure, with its interval where that is known."""
    if interval is None:
        return _NONE
    digits = _digits(measure)
    shown = _number(interval.value, digits)
    return f"{shown} [{_number(interval.low, digits)}, {_number(interval.high, digits)}]" if interval.known else shown


def difference_text(measure: Measure, difference: Difference | None) -> str:
    """The difference to the first run, with its interval where that is known; "" where there is none."""
    if difference is None:
        return ""
    interval, digits = difference.interval, _digits(measure)
    shown = _number(interval.value, digits, "+")
    if not interval.known:
        return shown
    return f"{shown} [{_number(interval.low, digits, '+')}, {_number(interval.high, digits, '+')}]"


def verdict_text(measure: Measure, difference: Difference | None) -> str:
    """What the difference says, and whether losses of the same tokens were compared."""
    if difference is None:
        return ""
    pairs = f"{difference.interval.points:,} pairs" if difference.paired else ""
    return ", ".join(filter(None, (difference.verdict(measure.better), pairs)))


def title(measure: Measure) -> str:
    """What is measured, and its unit."""
    return f"{measure.what} ({measure.unit})" if measure.unit else measure.what


def _runs(comparison: Comparison) -> Iterator[str]:
    width = max(len(run.name) for run in comparison.runs)
    for run in comparison.runs:
        yield f"{run.name:{width}}  {run.steps:,} steps, {run.end:,} tokens  {run.folder}"


def _measures(comparison: Comparison) -> Iterator[str]:
    names = [run.name for run in comparison.runs]
    for measure in comparison.measures:
        yield title(measure) + (f"; {measure.note}" if measure.note else "")
        values = [value_text(measure, estimate) for estimate in measure.estimates]
        differences = [difference_text(measure, difference) for difference in measure.differences]
        verdicts = [verdict_text(measure, difference) for difference in measure.differences]
        yield from (f"  {line}" for line in _columns(names, values, differences, verdicts))


def _columns(*columns: Sequence[str]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _field(field: FieldDifference, names: Sequence[str]) -> Iterator[str]:
    meaning = f"  ({field.meaning})" if field.meaning else ""
    yield f"{field.field}{meaning}"
    for value, of_runs in field.groups(names):
        yield f"    {value}: {', '.join(of_runs)}"


def _digits(measure: Measure) -> int:
    """Digits after the point that suit the largest figure of the measure."""
    values = [abs(one.value) for one in measure.estimates if one is not None]
    largest = max(values, default=0.0)
    if not measure.unit and all(value == int(value) for value in values):
        return 0
    return 4 if largest < 10 else 1 if largest < 1000 else 0


def _number(value: float, digits: int, sign: str = "") -> str:
    if not math.isfinite(value):
        return _NONE
    return f"{value:{sign}.4g}" if abs(value) >= 1e9 else f"{value:{sign},.{digits}f}"
