"""Figures of a run as SVG in data URIs: a page that holds them needs no other file."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.config import WeightKind
from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.stream import PhaseMix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")
_INK, _FAINT, _RESTART = "#333333", "#b8b8b8", "#D55E00"
_MOST_POINTS = 1200
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.grid": True,
    "grid.color": "#ececec",
    "svg.hashsalt": "kaiyuan",
}


@dataclass(frozen=True)
class Figure:
    """One picture and its words."""

    title: str
    caption: str
    uri: str
    wide: bool = False


@dataclass(frozen=True)
class Line:
    """A horizontal line to compare a curve with."""

    name: str
    value: float


def training_figures(history: History, phases: Sequence[PhaseMix], references: Sequence[Line]) -> Iterator[Figure]:
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
    nodes = Counter(str(row["slowest_node"]) for row in history.rows if isinstance(row.get("slowest_node"), str))
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

    return Figure(title, caption, _render(whole, wide), wide)


def stream_figures(phases: Sequence[PhaseMix], wide: bool = False) -> Iterator[Figure]:
    """Share and mean quality quantile of each dataset along the token position."""
    _, unit = scaled(np.array([phases[-1].end], dtype=np.float64))
    names = list(dict.fromkeys(name for phase in phases for name in phase.tokens))
    colours = _colours(names)
    wide = wide or len(names) > len(COLOURS)

    def shares(axes: Axes) -> None:
        for phase in phases:
            tokens = np.array([phase.tokens.get(name, np.zeros(len(phase.edges) - 1)) for name in names])
            total = tokens.sum(axis=0)
            share = 100 * np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
            base = np.zeros(len(total))
            for name, part in zip(names, share, strict=True):
                if part.any():
                    axes.stairs(base + part, phase.edges / unit.size, baseline=base, fill=True, color=colours[name])
                base = base + part
        _finish_stream(axes, phases, unit, colours)
        axes.set_ylim(0, 100)
        axes.set_ylabel("% of tokens")

    def quality(axes: Axes) -> None:
        scored = {}
        for phase in phases:
            middles = (phase.edges[1:] + phase.edges[:-1]) / 2 / unit.size
            for name, quantiles in phase.mean_quantile.items():
                if not np.isnan(quantiles).all():
                    scored[name] = colours[name]
                    axes.plot(middles, quantiles, color=colours[name], linewidth=1.2, marker=".", markersize=3)
            axes.plot(middles, phase.overall_quantile(), color=_INK, linewidth=2.2)
        _finish_stream(axes, phases, unit, {**scored, "all scored": _INK})
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("mean quality quantile")

    caption = (
        "Mean rank by score of the tokens there, in hundredths of the whole corpus, 1 the best; documents without a "
        "score are the lowest. The dark line is all scored datasets."
    )
    if any(phase.recipe.get("pack") for phase in phases):
        caption += " In packed phases it is that of the same part of the order before it was packed."
    legend_rows = -(-len(names) // 4)
    yield Figure(
        "Datasets",
        "Share of each dataset in the documents' tokens along the token position.",
        _render(shares, wide, legend_rows),
        wide,
    )
    yield Figure("Quality", caption, _render(quality, wide, legend_rows), wide)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each dataset; after the eighth the same colours come again, paler."""
    from matplotlib.colors import to_hex, to_rgb

    found = {}
    for index, name in enumerate(names):
        paler = min(0.3 * (index // len(COLOURS)), 0.8)
        found[name] = to_hex([part + (1 - part) * paler for part in to_rgb(COLOURS[index % len(COLOURS)])])
    return found


@dataclass(frozen=True)
class Unit:
    """So many tokens, and what an axis calls them."""

    size: float
    label: str


def scaled(tokens: NDArray[np.float64]) -> tuple[NDArray[np.float64], Unit]:
    """Tokens in the unit that suits the largest of them."""
    for size, label in ((1e12, " (T)"), (1e9, " (B)"), (1e6, " (M)"), (1e3, " (k)")):
        if tokens.max() >= size:
            return tokens / size, Unit(size, label)
    return tokens, Unit(1.0, "")


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
    reached = history.rows[-1]["tokens"]
    axes.set_xlim(0, reached / unit.size)
    for phase in phases:
        if phase.start < reached:
            _name_phase(axes, phase, unit)
    for event in history.restarts:
        place = history.tokens_at(event.get("step", 0)) / unit.size
        axes.axvline(place, color=_RESTART, linewidth=0.9, linestyle=":")
        axes.plot(place, 0, transform=axes.get_xaxis_transform(), marker="^", color=_RESTART, clip_on=False, zorder=5)


def _name_phase(axes: Axes, phase: PhaseMix, unit: Unit) -> None:
    if phase.start:
        axes.axvline(phase.start / unit.size, color=_INK, linewidth=0.9, linestyle="--")
    axes.annotate(
        phase.name,
        (phase.start / unit.size, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=8,
        color=_INK,
    )


def _finish_stream(axes: Axes, phases: Sequence[PhaseMix], unit: Unit, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    for phase in phases:
        _name_phase(axes, phase, unit)
    axes.set_xlim(0, phases[-1].end / unit.size)
    axes.set_xlabel(f"tokens{unit.label}")
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _render(draw: Callable[[Axes], None], wide: bool = False, legend_rows: int = 1) -> str:
    """Draw on a canvas of its own; no window system and no global state of pyplot."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        width, height = (9.6, 3.4) if wide else (4.7, 2.9)
        canvas = Canvas(figsize=(width, height + 0.18 * (legend_rows - 1)), layout="constrained")
        draw(canvas.add_subplot())
        buffer = io.BytesIO()
        # No date, so that the same run gives the same page.
        canvas.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
