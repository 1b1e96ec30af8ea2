"""The one way for any room to add a metric: `record`. Needs neither torch nor a device.

A row of metrics (`train/hooks/metrics.py`) holds what all ranks have recorded since the row before it. Where this
process does not train, `record` does nothing.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Reduce = Literal["mean", "sum", "max"]
# A number or a tensor of one element; torch stays outside of this file, so that rooms without it can record too.
Value = Any
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)+")
_START: dict[str, float] = {"mean": 0.0, "sum": 0.0, "max": -math.inf}


class Metric(NamedTuple):
    """A metric as all ranks know it.

    Attributes:
        terminal: its value is also in the terminal's lines.
    """

    name: str
    reduce: Reduce
    terminal: bool = False


def record(name: str, value: Value, reduce: Reduce = "mean", *, terminal: bool = False) -> None:
    """Add a value to a metric.

    The next row has a column `name`: the mean, the sum or the maximum of all values that all ranks have recorded since
    the row before; null where it is not finite. Without a value the row has no such column. A rank may record any
    number of values, or none. Each tensor-parallel rank that records counts, also in a sum; passes that are computed
    twice (recomputed activations) record twice.

    A metric whose first value comes after the forward pass of a logged step is in the row after that step's, unless it
    was announced. Passes that may be played as CUDA graphs record from the first step on, or not at all.

    Args:
        name: `room/what`, as `optimizer/clipped_heads`.
        value: a number, or a tensor of one element, which is read without waiting for its device.
        terminal: show the metric in the terminal's lines too.

    Raises:
        ValueError: this rank records the metric by another reduction too, or its name has no room.
    """
    if _recorder is not None:
        _recorder.add(Metric(name, reduce, terminal), value)


def announce(name: str, reduce: Reduce = "mean", *, terminal: bool = False) -> None:
    """Make a metric known before its first value, so that the row of the step that records it has it."""
    if _recorder is not None:
        _recorder.known(Metric(name, reduce, terminal))


@contextlib.contextmanager
def not_recorded() -> Iterator[None]:
    """Record nothing in the body: it repeats a step, or is none."""
    global _recorder
    recorder, _recorder = _recorder, None
    try:
        yield
    finally:
        _recorder = recorder


def calls() -> int:
    """How often this process has called `record` during a run; CUDA graphs cannot repeat a call."""
    return 0 if _recorder is None else _recorder.calls


def has_news() -> bool:
    """This rank knows a metric that the ranks have not agreed on."""
    return _recorder is not None and _recorder.has_news


@dataclass
class Total:
    """What this rank has recorded of a metric since the last row: numbers of the host and of its device apart."""

    reduce: Reduce
    count: int = 0
    host: float = 0.0
    device: Any = None

    def add(self, value: Value, dtype: Any) -> None:
        self.count += 1
        if not hasattr(value, "detach"):
            value = float(value)
            self.host = _larger(self.host, value) if self.reduce == "max" else self.host + value
            return
        # A copy: the room may use the tensor's memory again.
        value = value.detach().to(dtype, copy=True).reshape(())
        if self.device is None:
            self.device = value
        elif self.reduce == "max":
            self.device = self.device.maximum(value)
        else:
            self.device += value


@dataclass
class Recorder:
    """All metrics of this rank.

    Attributes:
        dtype: of sums on the device, one of torch's.
        agreed: the metrics that every rank knows, in the same order.
        totals: since the last row, by name.
    """

    dtype: Any
    agreed: list[Metric] = field(default_factory=list)
    totals: dict[str, Total] = field(default_factory=dict)
    calls: int = 0
    has_news: bool = False
    _known: dict[str, Metric] = field(default_factory=dict)

    def add(self, metric: Metric, value: Value) -> None:
        self.known(metric)
        self.calls += 1
        if metric.name not in self.totals:
            self.totals[metric.name] = Total(metric.reduce, host=_START[metric.reduce])
        self.totals[metric.name].add(value, self.dtype)

    def known(self, metric: Metric) -> None:
        """Remember the metric; it is news if the ranks have not agreed on it."""
        earlier = self._known.get(metric.name)
        if earlier is None:
            if not _NAME.fullmatch(metric.name):
                raise ValueError(f"metric {metric.name} is not named room/what, which no other column of a row is")
            self._known[metric.name] = metric
            self.has_news = self.has_news or metric.name not in {one.name for one in self.agreed}
        elif earlier.reduce != metric.reduce:
            raise ValueError(f"metric {metric.name} is recorded as {earlier.reduce} and as {metric.reduce}")

    def news(self) -> list[Metric]:
        """Return all metrics that this rank knows, sorted."""
        return sorted(self._known.values())

    def agree(self, of_ranks: list[list[Metric]]) -> None:
        """Take the metrics of all ranks as those that every rank knows.

        Raises:
            ValueError: ranks record one name by two reductions.
        """
        union: dict[str, Metric] = {}
        for metric in sorted(metric for known in of_ranks for metric in known):
            earlier = union.setdefault(metric.name, metric)
            if earlier.reduce != metric.reduce:
                raise ValueError(f"ranks record metric {metric.name} as {earlier.reduce} and as {metric.reduce}")
            union[metric.name] = metric
        self.agreed, self._known, self.has_news = list(union.values()), union, False

    def take(self) -> list[Total]:
        """Return the totals of the metrics that all ranks know, and begin again from nothing."""
        return [self.totals.pop(name, Total(reduce, host=_START[reduce])) for name, reduce, _ in self.agreed]


_recorder: Recorder | None = None


def open_recorder(dtype: Any) -> Recorder:
    """Begin to record in this process."""
    global _recorder
    _recorder = Recorder(dtype)
    return _recorder


def close_recorder() -> None:
    """Stop recording."""
    global _recorder
    _recorder = None


def is_recorded(column: str) -> bool:
    """Whether a column of a row was recorded: no other has a room in its name."""
    return "/" in column


def finite_or_none(number: float) -> float | None:
    """Return the number as JSON can hold it."""
    return number if math.isfinite(number) else None


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)
