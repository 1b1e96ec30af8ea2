"""The figure of the learning rates."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.plots import _rates
from megatron_kaiyuan.report.table import Table


def drawn(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Curves by their names in the legend, that of the schedule left out."""
    axes = Figure().subplots()
    table = Table({**row, "step": step, "tokens": step} for step, row in enumerate(rows))
    _rates(
        axes,
        np.arange(float(len(rows))),
        History(rows=table),
    )
    legend = axes.get_legend()
    names = [text.get_text() for text in legend.get_texts()][1:] if legend else []
    assert len(axes.lines) == 1 + len(names) and list(axes.lines[0].get_ydata()) == [row["lr"] for row in rows]
    return {name: list(map(float, line.get_ydata())) for name, line in zip(names, axes.lines[1:], strict=True)}


def test_kinds_of_one_rate_are_one_curve() -> None:
    """A rate of its own that a resume has brought has no values before."""
    own = {"lr_embedding": 5e-4, "lr_head": 5e-4, "lr_norms": 0.0}
    found = drawn([{"lr": 1e-3}, {"lr": 1e-3, **own}, {"lr": 1e-3, **own}])
    assert found.keys() == {"embedding, head", "norms"}
    assert found == {"embedding, head": [5e-4, 5e-4], "norms": [0, 0]}


def test_one_rate_needs_no_legend() -> None:
    assert drawn([{"lr": 1e-3}, {"lr": 2e-3}]) == {}
