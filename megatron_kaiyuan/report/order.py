"""One page about the order of the data: phases as they were built, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.files import write_text
from megatron_kaiyuan.report.figures import stream_figures
from megatron_kaiyuan.report.page import render
from megatron_kaiyuan.report.stream import PhaseMix, stream_tables


def build_order_report(phases: Sequence[PhaseMix], output: Path, name: str, notes: Sequence[str] = ()) -> Path:
    """Write the page; it refers to nothing outside itself.

    Args:
        phases: at least one, in the order of the stream.
        name: the heading.
        notes: what the reader should know, a line each.

    Returns:
        `output`.
    """
    figures = list(stream_figures(phases, wide=True))
    write_text(output, render("order.html", name=name, figures=figures, stream=stream_tables(phases), notes=notes))
    return output
