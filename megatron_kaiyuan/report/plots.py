"""Figures of a run against its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.config import WeightKind
from megatron_kaiyuan.pages.phase_mixes import PhaseMix
from megatron_kaiyuan.pages.plotting import COLOURS, Figure, Unit, name_phase, render_plot, scaled
from megatron_kaiyuan.report.metrics import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESTART = "#D55E00"
_MOST_POINTS = 1200


@dataclass(frozen=True)
class ReferenceLine:
    """A horizontal line to compare a curve with."""

    name: str
    value: float


def training_figures(
    history: History, phases: Sequence[PhaseMix], references: Sequence[ReferenceLine]
) -> Iterator[Figure]:
    """Loss, learning rate, gradient norm, loss scale and speed against tokens."""
    x = scaled(history.column("tokens"))[0]

    def frame(draw: Callable[[Axes], None], title: str, caption: str, wide: bool = False) -> Figure:
        return against_tokens(draw, history, phases, title, caption, wide)

    def loss(axes: Axes) -> None:
        _curve(axes, x, history.column("loss"), smooth=True)
        for line, colour in zip(references, COLOURS[2:], strict=False):
            axes.axhline(line.value, color=colour, linewidth=1, linestyle="-.", label=line.name)
        if references:
            axes.legend(frameon=False, loc="upper right")
        axes.set_ylabel("nats per token")

    yield frame(loss, "Loss", "Training loss; the strong line is a running mean.", wide=True)
    yield frame(lambda axes: _rates(axes, x, history), "Learning rate", "As the schedule sets it.")
    for name, title, caption, logarithmic in (
        ("grad_norm", "Gradient norm", "Before clipping; skipped steps have none.", True),
        ("loss_scale", "Loss scale", "1 without FP16.", True),
        ("tokens_per_second", "Speed", "Tokens per second of the whole job.", False),
    ):
        values = history.column(name)
        yield frame(lambda axes, v=values, n=logarithmic: _panel(axes, x, v, n), title, caption)  # type: ignore[misc]
    for name in history.recorded():
        values = history.column(name)
        yield frame(lambda axes, v=values: _panel(axes, x, v, False), name, "Recorded by its room, over all ranks.")  # type: ignore[misc]
    if np.isfinite(history.column("rank_seconds_max")).any():

        def ranks(axes: Axes) -> None:
            for name, label, colour in zip(
                ("max", "median", "min"), ("slowest", "median", "fastest"), COLOURS, strict=False
            ):
                axes.plot(x, history.column(f"rank_seconds_{name}"), color=colour, label=label)
            axes.legend(frameon=False)

        yield frame(ranks, "Ranks", f"Seconds to a rank's own gradients. {_slowest(history)}")


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
    _panel(axes, x, history.column("lr"), logarithmic=False)
    # One curve for the kinds that share a rate in every row, some of which may have none.
    own: dict[bytes, list[str]] = {}
    for kind in get_args(WeightKind):
        values = history.column(f"lr_{kind}")
        if np.isfinite(values).any():
            own.setdefault(values.tobytes(), []).append(kind)
    for (values_of, kinds), colour in zip(own.items(), COLOURS[1:] + COLOURS, strict=False):
        axes.plot(_thin(x), _thin(np.frombuffer(values_of)), color=colour, linewidth=1, label=", ".join(kinds))
    if own:
        axes.legend(frameon=False)


def _panel(axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], logarithmic: bool) -> None:
    _curve(axes, x, values)
    usable = values[np.isfinite(values) & (values > 0)]
    if logarithmic and len(usable) and usable.max() > 10 * usable.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _curve(axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], smooth: bool = False) -> None:
    finite = np.isfinite(values)
    x, values = _thin(x[finite]), _thin(values[finite])
    if smooth and len(values) >= 20:
        axes.plot(x, values, color=COLOURS[4], linewidth=0.7, alpha=0.6)
        values = _running_mean(values, max(len(values) // 40, 3))
    # A single row makes no line.
    axes.plot(x, values, color=COLOURS[0], linewidth=1.6, marker="." if len(values) < 20 else None)


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of equal groups, so that a long run stays a small page."""
    group = -(-len(values) // _MOST_POINTS)
    if group <= 1:
        return values
    starts = np.arange(0, len(values), group)
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))


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
    for phase in phases:
        if phase.start < reached:
            name_phase(axes, phase, unit)
    for event in history.restarts:
        place = history.tokens_at(event.get("step", 0)) / unit.size
        axes.axvline(place, color=_RESTART, linewidth=0.9, linestyle=":")
        axes.plot(place, 0, transform=axes.get_xaxis_transform(), marker="^", color=_RESTART, clip_on=False, zorder=5)
