"""Final measures of runs: each with its interval, and the difference of every run to the first one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from megatron_kaiyuan.compare.bootstrap import FEWEST, Floats, mean_interval
from megatron_kaiyuan.compare.differences import seed_groups
from megatron_kaiyuan.compare.evaluation import HELD_OUT, Score, scores
from megatron_kaiyuan.compare.intervals import Interval, difference
from megatron_kaiyuan.compare.pairs import paired_losses
from megatron_kaiyuan.compare.runs import Run, Series

Better = Literal["lower", "higher", None]
# Of the tokens of the shortest run.
_WINDOW_SHARE = 0.1
_WINDOW_ROWS = 20
# Kinds of figures of which less is better; of accuracies more is. Of any other neither is said.
_LOWER = (
    "loss",
    "calibration error",
    "bits_per_byte",
    "perplexity",
    "byte_perplexity",
    "word_perplexity",
    "nats_per_token",
)
_HIGHER = ("acc", "exact_match", "f1", "pass@", "bleu", "rouge")


@dataclass(frozen=True)
class Difference:
    """How far a run is from the first one.

    Attributes:
        paired: losses of the same tokens were subtracted from each other, span by span.
        of_seeds: the largest difference between compared runs that differ in the seed alone; 0: there are none.
    """

    interval: Interval
    paired: bool = False
    of_seeds: float = 0.0

    def verdict(self, better: Better) -> str:
        """Return the difference in words; "" where it has no interval, or neither direction is the better one."""
        if not self.interval.known:
            return ""
        if self.interval.holds_zero:
            return "cannot tell"
        if abs(self.interval.value) <= self.of_seeds:
            return "cannot tell: seeds differ by as much"
        if better is None:
            return "lower" if self.interval.value < 0 else "higher"
        return "better" if (self.interval.value < 0) == (better == "lower") else "worse"


@dataclass(frozen=True)
class Measure:
    """One figure of all runs.

    Attributes:
        what: of which the figure is: a loss and over which tokens, a task.
        unit: of the figure, "" for a count.
        estimates: by run; None where a run has none.
        differences: to the first run, by run; None for the first and where one of the two has none.
        note: why a difference is missing, or "".
    """

    what: str
    unit: str
    better: Better
    estimates: list[Interval | None]
    differences: list[Difference | None]
    note: str = ""


@dataclass(frozen=True)
class Window:
    """The tokens (begin, end] that final measures are means over."""

    begin: int
    end: int

    @property
    def words(self) -> str:
        return f"tokens {self.begin:,} to {self.end:,}"


def common_window(runs: Sequence[Run], last_tokens: int | None) -> Window:
    """The last tokens that all runs have trained on.

    Args:
        last_tokens: so many; None: a tenth of the shortest run's, or as many as 20 rows of every run have.
    """
    end = min(run.end for run in runs)
    if last_tokens is not None:
        return Window(max(0, end - last_tokens), end)
    return Window(max(0, min(end - math.ceil(_WINDOW_SHARE * end), *(_begin_of_rows(run, end) for run in runs))), end)


def _begin_of_rows(run: Run, end: int) -> int:
    last = int(np.searchsorted(run.tokens, end, side="right"))
    return int(run.before[max(0, last - _WINDOW_ROWS)])


def final_measures(runs: Sequence[Run], window: Window) -> list[Measure]:
    """Everything that is compared at the end, losses first."""
    of_training = [_loss(runs, window), *_own_ends(runs, window), *_recorded(runs, window), *_evaluated(runs)]
    groups = seed_groups(runs)
    with_seeds = [_with_seeds(measure, groups) for measure in of_training]
    return [*with_seeds, *_speeds(runs, window), *_sizes(runs, window)]


def _with_seeds(measure: Measure, groups: Sequence[Sequence[int]]) -> Measure:
    """The measure whose differences know how far apart runs are that differ in the seed alone."""
    of_seeds = 0.0
    for group in groups:
        values = [estimate.value for number in group if (estimate := measure.estimates[number]) is not None]
        with_first = [one for number in group if 0 in group and (one := measure.differences[number]) is not None]
        to_first = [abs(one.interval.value) for one in with_first]
        of_seeds = max(of_seeds, *to_first, max(values, default=0.0) - min(values, default=0.0))
    found = [None if one is None else replace(one, of_seeds=of_seeds) for one in measure.differences]
    return replace(measure, differences=found)


def _loss(runs: Sequence[Run], window: Window) -> Measure:
    estimates = [_or_none(_loss_over(run, window)) for run in runs]
    differences = [None, *(_loss_difference(runs[0], run, window) for run in runs[1:])]
    return Measure(f"training loss, {window.words}", "nats a token", "lower", estimates, differences)


def _own_ends(runs: Sequence[Run], window: Window) -> Iterator[Measure]:
    """The loss of runs that are longer than the shortest at their own ends, where nothing can be paired."""
    if len({run.end for run in runs}) > 1:
        length = window.end - window.begin
        estimates = [_or_none(_loss_over(run, Window(max(0, run.end - length), run.end))) for run in runs]
        note = "the runs have trained on different numbers of tokens: no difference"
        yield Measure(
            "training loss at each run's own end", "nats a token", "lower", estimates, [None] * len(runs), note
        )


def _loss_over(run: Run, window: Window) -> Interval:
    there = _inside(run, window)
    return mean_interval(run.losses[there], run.loss_steps[there])


def _inside(run: Run, window: Window) -> Floats:
    """Rows whose steps all lie in the window and have a loss, by number; at least the last row before its end."""
    there = np.isfinite(run.losses) & (run.loss_steps > 0) & (run.tokens <= window.end)
    inside = np.flatnonzero(there & (run.before >= window.begin))
    return inside if len(inside) else np.flatnonzero(there)[-1:]


def _loss_difference(first: Run, run: Run, window: Window) -> Difference | None:
    apart = difference(_loss_over(run, window), _loss_over(first, window))
    if first.order is not None and first.order == run.order:
        losses, steps = paired_losses(run, first, window.begin, window.end)
        if len(losses) >= FEWEST or (len(losses) and not apart.known):
            return Difference(mean_interval(losses, steps), paired=True)
    return Difference(apart) if math.isfinite(apart.value) else None


def _recorded(runs: Sequence[Run], window: Window) -> Iterator[Measure]:
    """What validation and tasks in the loop have recorded."""
    for name in dict.fromkeys(name for run in runs for name in run.series if "/" in name):
        ends = [run.series[name].until(window.end) if name in run.series else None for run in runs]
        estimates = [None if one is None or not len(one.values) else Interval(float(one.values[-1])) for one in ends]
        differences = [None, *(_last_difference(ends[0], one) for one in ends[1:])]
        yield Measure(f"{name}, last up to token {window.end:,}", "", _better(name), estimates, differences)


def _last_difference(first: Series | None, other: Series | None) -> Difference | None:
    """At the last token at which both have a figure."""
    if first is None or other is None:
        return None
    common, one, its = np.intersect1d(other.tokens, first.tokens, return_indices=True)
    return Difference(Interval(float(other.values[one[-1]] - first.values[its[-1]]))) if len(common) else None


def _evaluated(runs: Sequence[Run]) -> Iterator[Measure]:
    """What `kaiyuan eval` has measured."""
    found = [
        {} if run.evaluation is None else {(one.what, one.unit): one for one in scores(run.evaluation)} for run in runs
    ]
    for what, unit in dict.fromkeys(name for of_run in found for name in of_run):
        of_runs = [of_run.get((what, unit)) for of_run in found]
        estimates = [None if one is None else one.estimate for one in of_runs]
        differences = [None, *(_score_difference(of_runs[0], one) for one in of_runs[1:])]
        others = {one.made_from for one in of_runs if one is not None}
        note = "measured on other data or with other settings: no difference" if len(others) > 1 else ""
        yield Measure(what, unit, _better("loss" if what.startswith(HELD_OUT) else unit), estimates, differences, note)


def _score_difference(first: Score | None, other: Score | None) -> Difference | None:
    if first is None or other is None or first.made_from != other.made_from:
        return None
    return Difference(difference(other.estimate, first.estimate))


def _speeds(runs: Sequence[Run], window: Window) -> Iterator[Measure]:
    for name, what, unit in (("tokens_per_second", "speed", "tokens/s"), ("mfu", "MFU", "")):
        estimates = [_mean_over(run.series.get(name), window) for run in runs]
        first = estimates[0]
        differences = [
            None,
            *(None if one is None or first is None else Difference(difference(one, first)) for one in estimates[1:]),
        ]
        if any(estimates):
            yield Measure(f"{what}, {window.words}", unit, "higher", estimates, differences)


def _mean_over(series: Series | None, window: Window) -> Interval | None:
    if series is None:
        return None
    values = series.until(window.end).since(window.begin).values
    return mean_interval(values, np.ones(len(values))) if len(values) else None


def _sizes(runs: Sequence[Run], window: Window) -> Iterator[Measure]:
    """Figures that are counted or read off, without an interval."""

    def exact(what: str, unit: str, of: Callable[[Run], float], better: Better = None) -> Iterator[Measure]:
        values = [of(run) for run in runs]
        estimates = [_or_none(Interval(value)) for value in values]
        differences = [
            None,
            *(
                Difference(Interval(value - values[0])) if math.isfinite(value - values[0]) else None
                for value in values[1:]
            ),
        ]
        if any(estimates):
            yield Measure(what, unit, better, estimates, differences)

    def at_end(run: Run, values: Floats | None) -> float:
        last = int(np.searchsorted(run.tokens, window.end, side="right")) - 1
        return math.nan if values is None or last < 0 else float(values[last])

    yield from exact(f"wall clock to token {window.end:,}, without pauses", "s", lambda run: at_end(run, run.seconds))
    yield from exact(f"model FLOPs to token {window.end:,}", "FLOPs", lambda run: at_end(run, run.flops))
    yield from exact("peak memory of a device", "GiB", _peak_memory, "lower")
    for name in dict.fromkeys(name for run in runs for name in run.counts):
        if any(run.counts.get(name) for run in runs):
            yield from exact(name, "", lambda run, name=name: run.counts.get(name, 0))  # type: ignore[misc]


def _peak_memory(run: Run) -> float:
    series = run.series.get("peak_memory_bytes")
    return math.nan if series is None else float(series.values.max()) / (1 << 30)


def _better(name: str) -> Better:
    last = name.rpartition("/")[2]
    if last.endswith(_LOWER):
        return "lower"
    return "higher" if any(word in last for word in _HIGHER) else None


def _or_none(interval: Interval) -> Interval | None:
    return interval if math.isfinite(interval.value) else None
