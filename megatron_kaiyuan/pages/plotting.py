"""Figures of a page in one style. They stand in the page as SVG, at two widths; the page shows the one that fits.

Without scripts nothing is missing but values on hover and zoom (figures.js).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from megatron_kaiyuan.pages.phase_mixes import PhaseMix
from megatron_kaiyuan.pages.svg import COLOURS, FAINT, GRID, INK, MARK, PIXELS_PER_INCH, css_colour, inline_svg
from megatron_kaiyuan.pages.values import as_json, in_words, series_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Pixels: across the page, half of it, and a telephone's; layout.html has the same.
_WIDE, _HALF, _SMALL = (948, 300), (464, 270), (358, 240)
# Of a curve the least and the largest of so many columns are kept.
_COLUMNS = 450
_STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "lines.solid_capstyle": "round",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    "path.simplify_threshold": 0.2,
    # Text stays text: it is read by search, and set in the page's font.
    "svg.fonttype": "none",
    "svg.hashsalt": "kaiyuan",
}

__all__ = ["COLOURS", "FAINT", "INK", "MARK", "Figure", "Plot", "Unit", "name_phases", "render_plot", "scaled", "thin"]


@dataclass(frozen=True)
class LegendEntry:
    name: str
    colour: str
    style: str


@dataclass(frozen=True)
class Plot:
    """A picture at two widths, its legend, and its values for the page's script."""

    full: Markup
    small: Markup
    legend: list[LegendEntry]
    values: Markup


@dataclass(frozen=True)
class Figure:
    """One picture and its words."""

    title: str
    caption: str
    plot: Plot
    wide: bool = False


def render_plot(draw: Callable[[Axes], None], wide: bool = False) -> Plot:
    """Draw on canvases of their own; no window system and no global state of pyplot.

    Args:
        draw: is called for each width. Labels of lines name their values; a legend is taken off and set by the page.
    """
    full, legend, values = _draw_one(draw, "full", _WIDE if wide else _HALF)
    small, _, _ = _draw_one(draw, "small", _SMALL)
    return Plot(full, small, legend, values)


def _draw_one(
    draw: Callable[[Axes], None], kind: str, size: tuple[int, int]
) -> tuple[Markup, list[LegendEntry], Markup]:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        width, height = (pixels / PIXELS_PER_INCH for pixels in size)
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes)
        legend = _take_legend(axes)
        for one in canvas.axes:
            _plain_numbers(one)
        series = series_of(axes)
        picture = inline_svg(canvas, axes, kind, in_words(axes, series))
        return picture, legend, as_json(axes, series)


def _take_legend(axes: Axes) -> list[LegendEntry]:
    legend = axes.get_legend()
    if legend is None:
        return []
    entries = [
        LegendEntry(text.get_text(), *_look(handle))
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
        if handle is not None
    ]
    legend.remove()
    return entries


def _look(handle: Artist) -> tuple[str, str]:
    """Colour and CSS border style."""
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(handle, Line2D):
        style = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashed"}.get(str(handle.get_linestyle()), "solid")
        return css_colour(to_hex(handle.get_color())), style
    return css_colour(to_hex(handle.get_facecolor())) if isinstance(handle, Patch) else INK, "solid"


def _plain_numbers(axes: Axes) -> None:
    """Powers of ten as 1000 or 1e+07: small exponents are hard to read."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_formatter(Plain())
            axis.set_minor_formatter(Plain())


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a curve that are seen: of each column of pixels the least and the largest, so that no peak is lost.

    Args:
        x: rising; points where either is not finite are left out.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], np.asarray(y[finite], dtype=np.float64)
    if len(x) <= 2 * _COLUMNS:
        return x, y
    columns = np.floor((x - x[0]) / ((x[-1] - x[0]) or 1.0) * (_COLUMNS - 1e-9))
    by_height = np.lexsort((y, columns))
    ends = np.flatnonzero(np.append(np.diff(columns[by_height]) > 0, True))
    starts: NDArray[np.intp] = np.concatenate([[0], ends[:-1] + 1])
    kept = np.unique(np.concatenate([[0], by_height[starts], by_height[ends], [len(x) - 1]]))
    return x[kept], y[kept]


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


def name_phases(axes: Axes, phases: Sequence[PhaseMix], unit: Unit, end: float) -> None:
    """Part phases by dashed lines, with names where there is room for them.

    Args:
        end: tokens at the right of the axes.
    """
    room = axes.get_figure().get_size_inches()[0] * PIXELS_PER_INCH * 0.8  # type: ignore[union-attr]
    free = 0.0
    for phase in phases:
        if phase.start >= end:
            continue
        if phase.start:
            axes.axvline(phase.start / unit.size, color=INK, linewidth=0.9, linestyle="--")
        place = phase.start / end * room
        if place < free:
            continue
        # Letters are at most seven pixels wide.
        free = place + 7 * len(phase.name) + 6
        axes.annotate(
            phase.name,
            (phase.start / unit.size, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=11,
            color=INK,
            gid=MARK,
        )
