"""Figures of a run against its tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.config import WeightKind
from megatron_kaiyuan.pages.phase_mixes import PhaseMix
from megatron_kaiyuan.pages.plotting import COLOURS, INK, MARK, Figure, Unit, name_phases, render_plot, scaled, thin
from megatron_kaiyuan.report.metrics import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESTART = COLOURS[5]


# Columns of held-out text are this, a domain and one of these ends, or the end alone: over all domains.
_VALIDATION = "validation/"
_VALIDATED = (
    ("loss", "Validation", "nats per token"),
    ("bits_per_byte", "Validation, bits per byte", "bits per byte"),
)
_TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
# Rows from which on a running mean says more than the rows.
_SMOOTHED_FROM = 20
# Column, title, what its axis says, caption, and whether the axis may be logarithmic.
_PANELS = (
    ("grad_norm", "Gradient norm", "norm", "Before clipping; skipped steps have none.", True),
    ("loss_scale", "Loss scale", "loss scale", "1 without FP16.", True),
    ("tokens_per_second", "Speed", "tokens/s", "Tokens per second of the whole job.", False),
)


@dataclass(frozen=True)
class ReferenceLine:
    """A horizontal line to compare a curve with."""

    name: str
    value: float


def training_figures(
    history: History, phases: Sequence[PhaseMix], references: Sequence[ReferenceLine]
) -> Iterator[Figure]:
    """Loss, learning rate, gradient norm, loss scale and speed against tokens, then what else rows hold."""
    x = scaled(history.column("tokens"))[0]

    def frame(draw: Callable[[Axes], None], title: str, caption: str, wide: bool = False) -> Figure:
        return against_tokens(draw, history, phases, title, caption, wide)

    yield frame(
        lambda axes: _loss(axes, x, history, references),
        "Loss",
        "Training loss; the strong line is a running mean.",
        wide=True,
    )
    shown: set[str] = set()
    for suffix, title, label in _VALIDATED:
        if columns := _validation(history, suffix):
            shown |= columns.keys()
            over_all = (
                "; the dark line is the mean over all domains, by weight" if _VALIDATION + suffix in columns else ""
            )
            draw = functools.partial(_domains, x=x, columns=columns, suffix=suffix, label=label)
            yield frame(draw, title, f"Held-out text while it trains{over_all}.", wide=True)
    yield frame(lambda axes: _rates(axes, x, history), "Learning rate", "As the schedule sets it.")
    for name, title, label, caption, logarithmic in _PANELS:
        values = history.column(name)
        yield frame(
            lambda axes, v=values, n=logarithmic, w=label: _panel(axes, x, v, n, w),  # type: ignore[misc]
            title,
            caption,
        )
    for name in history.recorded():
        if name not in shown:
            values = history.column(name)
            yield frame(
                lambda axes, v=values, w=name: _panel(axes, x, v, False, w),  # type: ignore[misc]
                name,
                "Recorded by its room, over all ranks.",
            )
    if np.isfinite(history.column("rank_seconds_max")).any():
        caption = f"Seconds to a rank's own gradients. {_slowest(history)}"
        yield frame(lambda axes: _ranks(axes, x, history), "Ranks", caption)


def speed_over_time(history: History) -> Figure | None:
    """Tokens a second against the hours of work; None: rows do not say when they were written."""
    seconds, speed = history.trained_seconds(), history.column("tokens_per_second")
    if not (np.isfinite(seconds) & np.isfinite(speed)).any():
        return None
    size, unit = next((one for one in _TIMES if np.nanmax(seconds) >= 2 * one[0]), _TIMES[-1])

    def draw(axes: Axes) -> None:
        _panel(axes, seconds / size, speed, False, "tokens/s")
        axes.set_xlabel(f"{unit} of work")

    caption = "Wall clock of all starts; the pauses between them are left out."
    return Figure("Speed over time", caption, render_plot(draw, wide=True), wide=True)


def _loss(axes: Axes, x: NDArray[np.float64], history: History, references: Sequence[ReferenceLine]) -> None:
    values = history.column("loss")
    finite = np.isfinite(values)
    at, values = x[finite], values[finite]
    if len(values) >= _SMOOTHED_FROM:
        axes.plot(*thin(at, values), color=COLOURS[4], linewidth=0.7, alpha=0.6, label="of a step")
        _curve(axes, at, _running_mean(values, max(len(values) // 40, 3)), "running mean")
    else:
        _curve(axes, at, values, "of a step")
    for line, colour in zip(references, COLOURS[2:], strict=False):
        axes.axhline(line.value, color=colour, linewidth=1, linestyle="-.", label=line.name)
    axes.legend(loc="upper right")
    axes.set_ylabel("nats per token")


def _validation(history: History, suffix: str) -> dict[str, NDArray[np.float64]]:
    """Columns of a held-out figure by domain, that over all domains first."""
    over_all = _VALIDATION + suffix
    names = [
        one
        for one in history.recorded()
        if one == over_all or (one.startswith(_VALIDATION) and one.endswith(f"_{suffix}"))
    ]
    return {name: history.column(name) for name in sorted(names, key=lambda name: (name != over_all, name))}


def _domains(
    axes: Axes, x: NDArray[np.float64], columns: dict[str, NDArray[np.float64]], suffix: str, label: str
) -> None:
    colours = itertools.cycle([*COLOURS[1:7], COLOURS[0]])
    for name, values in columns.items():
        if name == _VALIDATION + suffix:
            _curve(axes, x, values, "all domains", colour=INK, width=2.2)
        else:
            domain = name.removeprefix(_VALIDATION).removesuffix(f"_{suffix}")
            _curve(axes, x, values, domain, colour=next(colours), width=1.3)
    axes.legend(loc="upper right")
    axes.set_ylabel(label)


def _ranks(axes: Axes, x: NDArray[np.float64], history: History) -> None:
    for name, label, colour in zip(("max", "median", "min"), ("slowest", "median", "fastest"), COLOURS, strict=False):
        _curve(axes, x, history.column(f"rank_seconds_{name}"), label, colour=colour)
    axes.legend(loc="upper right")
    axes.set_ylabel("seconds")


def _slowest(history: History) -> str:
    """Return the nodes that were the slowest most often, in words."""
    nodes = history.rows.texts("slowest_node")
    said = [f"{node} in {count:,}" for node, count in nodes.most_common(3)]
    return f"The slowest rank was on {', '.join(said)} of {nodes.total():,} rows."


def against_tokens(
    draw: Callable[[Axes], None],
    history: History,
    phases: Sequence[PhaseMix],
    title: str,
    caption: str,
    wide: bool = False,
) -> Figure:
    """A figure whose x axis is the tokens of a run, as `scaled` scales them, with phases and restarts marked."""
    unit = scaled(history.column("tokens"))[1]

    def whole(axes: Axes) -> None:
        draw(axes)
        _mark(axes, history, phases, unit)
        axes.set_xlabel(f"tokens{unit.label}")

    return Figure(title, caption, render_plot(whole, wide), wide)


def _rates(axes: Axes, x: NDArray[np.float64], history: History) -> None:
    """The schedule's learning rate, and those of kinds of weights that have one of their own."""
    _panel(axes, x, history.column("lr"), logarithmic=False, label="learning rate")
    # One curve for the kinds that share a rate in every row, some of which may have none.
    own: dict[bytes, list[str]] = {}
    for kind in get_args(WeightKind):
        values = history.column(f"lr_{kind}")
        if np.isfinite(values).any():
            own.setdefault(values.tobytes(), []).append(kind)
    for (values_of, kinds), colour in zip(own.items(), COLOURS[1:] + COLOURS, strict=False):
        _curve(axes, x, np.frombuffer(values_of), ", ".join(kinds), colour=colour, width=1)
    if own:
        axes.legend(loc="upper right")


def _panel(axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], logarithmic: bool, label: str) -> None:
    _curve(axes, x, values, label)
    axes.set_ylabel(label)
    usable = values[np.isfinite(values) & (values > 0)]
    if logarithmic and len(usable) and usable.max() > 10 * usable.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _curve(
    axes: Axes,
    x: NDArray[np.float64],
    values: NDArray[np.float64],
    label: str,
    colour: str = COLOURS[0],
    width: float = 1.6,
) -> None:
    x, values = thin(x, values)
    # A single row makes no line.
    axes.plot(x, values, color=colour, linewidth=width, marker="." if len(values) < 20 else None, label=label)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over the last `width` values, over fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _mark(axes: Axes, history: History, phases: Sequence[PhaseMix], unit: Unit) -> None:
    """Phase boundaries that training reached, with names, and restarts."""
    reached = history.rows.tokens[-1]
    axes.set_xlim(0, reached / unit.size)
    name_phases(axes, phases, unit, reached)
    for event in history.restarts:
        place = history.tokens_at(event.get("step", 0)) / unit.size
        axes.axvline(place, color=_RESTART, linewidth=0.9, linestyle=":")
        axes.plot(
            place,
            0,
            transform=axes.get_xaxis_transform(),
            marker="^",
            color=_RESTART,
            clip_on=False,
            zorder=5,
            gid=MARK,
        )
