"""The plot of an answer: a measure against the quantile, datasets side by side, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kaiyuan.pages.plotting import COLOURS
from megatron_kaiyuan.research.probes.answer import Measure, ProbeAnswer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
}
_WIDTH, _HEIGHT = 3.6, 2.8


def draw(answer: ProbeAnswer, path: Path) -> None:
    """Write the plot as SVG: a row of panels for each protocol, a panel for each measure."""
    import matplotlib
    from matplotlib.figure import Figure

    protocols = list(answer.design.config.protocols)
    by_protocol = {name: [one for one in answer.measures if one.protocol == name] for name in protocols}
    columns = max(map(len, by_protocol.values()))
    # No date and no random identifiers: the same answer gives the same file.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "kaiyuan"}):
        canvas = Figure(figsize=(_WIDTH * columns, _HEIGHT * len(protocols)), layout="constrained")
        axes = canvas.subplots(len(protocols), columns, squeeze=False)
        for row, measures in zip(axes, by_protocol.values(), strict=True):
            for panel, measure in zip(row, measures, strict=True):
                _panel(panel, measure)
        canvas.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Axes, measure: Measure) -> None:
    datasets = list(dict.fromkeys(one.dataset for one in measure.windows))
    for dataset, colour in zip(datasets, COLOURS * len(datasets), strict=False):
        if dataset is None:
            continue
        mine = sorted((one for one in measure.windows if one.dataset == dataset), key=lambda one: one.quantile or 0)
        place = [one.quantile for one in mine]
        trend = measure.trends.get(dataset)
        label = dataset if trend is None else f"{dataset}: {trend.verdict}"
        axes.errorbar(
            place,
            [one.mean for one in mine],
            yerr=[one.half_width for one in mine],
            color=colour,
            marker="o",
            capsize=2,
            label=label,
        )
    for one in measure.windows:
        if one.dataset is None:
            axes.axhspan(one.mean - one.half_width, one.mean + one.half_width, color="#66666633", label=one.window)
    axes.set_title(f"{measure.name}, {measure.protocol}")
    axes.set_xlabel("quantile, from the best score")
    axes.set_ylabel("bits per byte")
    axes.legend(frameon=False, fontsize=7)
