"""The figures of a comparison: losses against tokens, FLOPs and time, and the difference to the first run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_kaiyuan.compare.bootstrap import Floats
from megatron_kaiyuan.compare.curves import Curve, loss_curves, smoothing_tokens, thinned
from megatron_kaiyuan.compare.evaluation import loss_by_position
from megatron_kaiyuan.compare.runs import Run
from megatron_kaiyuan.pages.plotting import COLOURS, INK, Figure, Unit, render_plot, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":")
_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
# Figures of rows that have a plot of their own, in words.
_OTHERS = {
    "tokens_per_second": ("Speed", "tokens/s"),
    "lr": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm", "gradient norm"),
}


@dataclass(frozen=True)
class _Line:
    name: str
    x: Floats
    y: Floats


def comparison_figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """Losses first; figures that no run has are left out."""
    curves = loss_curves(runs)
    alike = f"Training loss, mean of the last {smoothing_tokens(runs):,} tokens of each run."
    yield _plot(
        "Loss against tokens",
        alike,
        "tokens",
        "nats a token",
        [_Line(c.name, c.tokens, c.loss) for c in curves],
        wide=True,
    )
    yield from _difference(curves)
    flops = [_Line(curve.name, curve.flops, curve.loss) for curve in curves]
    yield from _if_any("Loss against FLOPs", f"{alike} Model FLOPs of the tokens that count.", "model FLOPs", flops)
    size, unit = _time_unit(curves)
    times = [_Line(curve.name, curve.seconds / size, curve.loss) for curve in curves]
    yield from _if_any("Loss against time", f"{alike} Wall clock without pauses.", unit, times)
    for name in dict.fromkeys(name for run in runs for name in run.series):
        yield from _series(runs, name)
    yield from _by_position(runs)


def _time_unit(curves: Sequence[Curve]) -> tuple[float, str]:
    longest = max((float(np.nanmax(curve.seconds)) for curve in curves if np.isfinite(curve.seconds).any()), default=0)
    return next((one for one in _TIME_UNITS if longest >= 2 * one[0]), _TIME_UNITS[-1])


def _difference(curves: Sequence[Curve]) -> Iterator[Figure]:
    """How far each run's smoothed loss is above the first one's at the same tokens."""
    first = curves[0]
    lines = []
    for curve in curves[1:]:
        inside = (curve.tokens >= first.tokens[:1].sum()) & (curve.tokens <= first.tokens[-1:].sum())
        at = curve.tokens[inside]
        if len(at):
            lines.append(_Line(curve.name, at, curve.loss[inside] - np.interp(at, first.tokens, first.loss)))
    if lines:
        caption = f"Loss less that of {first.name} at the same tokens, both smoothed alike; below 0 is better."
        yield _plot("Difference", caption, "tokens", "nats a token", lines, wide=True, zero=True, first_colour=1)


def _series(runs: Sequence[Run], name: str) -> Iterator[Figure]:
    if "/" not in name and name not in _OTHERS:
        return
    title, label = _OTHERS.get(name, (name, name))
    lines = []
    for run in runs:
        series = run.series.get(name)
        shown = thinned(len(series.values)) if series else []
        found = (
            (series.tokens[shown].astype(np.float64), series.values[shown]) if series else (np.array([]), np.array([]))
        )
        lines.append(_Line(run.name, *found))
    caption = "As recorded." if "/" in name else "Of each row."
    yield _plot(title, caption, "tokens", label, lines)


def _by_position(runs: Sequence[Run]) -> Iterator[Figure]:
    found = [np.array(loss_by_position(run.evaluation)).reshape(-1, 2).T for run in runs]
    lines = [_Line(run.name, *positions) for run, positions in zip(runs, found, strict=True)]
    if any(len(line.x) for line in lines):
        caption = "Held-out loss at each position in the context, 1 the first, as kaiyuan eval measured it."
        yield _plot("Loss by position", caption, "position in the context", "nats a token", lines, logarithmic=True)


def _if_any(title: str, caption: str, x_label: str, lines: Sequence[_Line]) -> Iterator[Figure]:
    if any(np.isfinite(line.x).any() for line in lines):
        yield _plot(title, caption, x_label, "nats a token", lines)


def _plot(
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    lines: Sequence[_Line],
    wide: bool = False,
    zero: bool = False,
    logarithmic: bool = False,
    first_colour: int = 0,
) -> Figure:
    unit = (
        Unit(1.0, "")
        if logarithmic
        else _unit(max((float(line.x[np.isfinite(line.x)].max(initial=0)) for line in lines), default=0.0))
    )

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines, first_colour):
            colour, style = COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]
            marker = "." if len(line.x) < 20 else None
            axes.plot(line.x / unit.size, line.y, style, color=colour, linewidth=1.3, marker=marker, label=line.name)
        if zero:
            axes.axhline(0.0, color=INK, linewidth=0.8)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(x_label + unit.label)
        axes.set_ylabel(y_label)
        axes.legend()

    return Figure(title, caption, render_plot(draw, wide), wide)


def _unit(largest: float) -> Unit:
    """A power of a thousand; beyond those of tokens its number, as FLOPs have no letters that are known."""
    if largest < 1e15:
        return scaled(np.array([largest]))[1]
    power = 3 * (int(np.log10(largest)) // 3)
    return Unit(10.0**power, f" (1e{power})")
