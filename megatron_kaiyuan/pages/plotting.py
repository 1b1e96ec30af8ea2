"""Figures as SVG in data URIs, in one style: a page that holds them needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.pages.phase_mixes import PhaseMix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")
_INK, _FAINT = "#333333", "#b8b8b8"
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
        render_plot(shares, wide, legend_rows),
        wide,
    )
    yield Figure("Quality", caption, render_plot(quality, wide, legend_rows), wide)


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


def name_phase(axes: Axes, phase: PhaseMix, unit: Unit) -> None:
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
        name_phase(axes, phase, unit)
    axes.set_xlim(0, phases[-1].end / unit.size)
    axes.set_xlabel(f"tokens{unit.label}")
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def render_plot(draw: Callable[[Axes], None], wide: bool = False, legend_rows: int = 1) -> str:
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
