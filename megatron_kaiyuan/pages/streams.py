"""What a token stream is made of, in two figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_kaiyuan.pages.phase_mixes import PhaseMix
from megatron_kaiyuan.pages.plotting import COLOURS, INK, Figure, Unit, name_phases, render_plot, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stream_figures(phases: Sequence[PhaseMix], wide: bool = False) -> Iterator[Figure]:
    """Share and mean quality quantile of each dataset along the token position."""
    _, unit = scaled(np.array([phases[-1].end], dtype=np.float64))
    names = list(dict.fromkeys(name for phase in phases for name in phase.tokens))
    colours = _colours(names)
    wide = wide or len(names) > len(COLOURS)
    caption = (
        "Mean rank by score of the tokens there, in hundredths of the whole corpus, 1 the best; documents without a "
        "score are the lowest. The dark line is all scored datasets."
    )
    if any(phase.recipe.get("pack") for phase in phases):
        caption += " In packed phases it is that of the same part of the order before it was packed."
    yield Figure(
        "Datasets",
        "Share of each dataset in the documents' tokens along the token position.",
        render_plot(lambda axes: _draw_shares(axes, phases, unit, colours), wide),
        wide,
    )
    yield Figure("Quality", caption, render_plot(lambda axes: _draw_quality(axes, phases, unit, colours), wide), wide)


def _draw_shares(axes: Axes, phases: Sequence[PhaseMix], unit: Unit, colours: dict[str, str]) -> None:
    middles = np.concatenate([phase.edges[1:] + phase.edges[:-1] for phase in phases]) / 2 / unit.size
    shown: dict[str, list[np.ndarray]] = {name: [] for name in colours}
    for phase in phases:
        tokens = np.array([phase.tokens.get(name, np.zeros(len(phase.edges) - 1)) for name in colours])
        total = tokens.sum(axis=0)
        share = 100 * np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
        base = np.zeros(len(total))
        for name, part in zip(colours, share, strict=True):
            shown[name].append(part)
            if part.any():
                axes.stairs(base + part, phase.edges / unit.size, baseline=base, fill=True, color=colours[name])
            base = base + part
    for name, parts in shown.items():
        axes.plot(middles, np.concatenate(parts), color=colours[name], label=name, visible=False)
    _finish(axes, phases, unit, colours)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of tokens")


def _draw_quality(axes: Axes, phases: Sequence[PhaseMix], unit: Unit, colours: dict[str, str]) -> None:
    scored: dict[str, str] = {}
    for phase in phases:
        middles = (phase.edges[1:] + phase.edges[:-1]) / 2 / unit.size
        for name, quantiles in phase.mean_quantile.items():
            if not np.isnan(quantiles).all():
                scored[name] = colours[name]
                axes.plot(middles, quantiles, color=colours[name], linewidth=1.2, marker=".", markersize=3, label=name)
        axes.plot(middles, phase.overall_quantile(), color=INK, linewidth=2.2, label="all scored")
    _finish(axes, phases, unit, {**scored, "all scored": INK})
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("mean quality quantile")


def _finish(axes: Axes, phases: Sequence[PhaseMix], unit: Unit, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    axes.set_xlim(0, phases[-1].end / unit.size)
    name_phases(axes, phases, unit, phases[-1].end)
    axes.set_xlabel(f"tokens{unit.label}")
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in colours.items()])


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each dataset; after the eighth the same colours come again, paler."""
    from matplotlib.colors import to_hex, to_rgb

    found = {}
    for index, name in enumerate(names):
        paler = min(0.3 * (index // len(COLOURS)), 0.8)
        found[name] = to_hex([part + (1 - part) * paler for part in to_rgb(COLOURS[index % len(COLOURS)])])
    return found
