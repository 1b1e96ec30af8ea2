"""One page about the order of the data: phases as they were built, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_kaiyuan.outputs import check
from megatron_kaiyuan.pages.page import earlier_page, page_identity, page_output, render, write_page
from megatron_kaiyuan.pages.phase_mixes import PhaseMix, stream_tables
from megatron_kaiyuan.pages.streams import stream_figures

GENERATOR = "kaiyuan-data report"


def build_order_report(
    phases: Sequence[PhaseMix],
    output: Path,
    name: str,
    notes: Sequence[str] = (),
    *,
    folder: Path,
    force: bool = False,
) -> Path:
    """Write the page; it refers to nothing outside itself.

    Args:
        phases: at least one, in the order of the stream.
        name: the heading.
        notes: what the reader should know, a line each.
        folder: in which the phases lie.
        force: a page about other phases may be replaced.

    Returns:
        `output`.

    Raises:
        UserError: something else lies at `output`.
    """
    identity = page_identity(folder, output)
    check(page_output(output), identity, earlier_page(GENERATOR), force)
    figures = list(stream_figures(phases, wide=True))
    marks = {"generator": GENERATOR, "identity": identity}
    page = render(
        "order.html", __package__, name=name, figures=figures, stream=stream_tables(phases), notes=notes, **marks
    )
    write_page(output, page, identity, GENERATOR, force)
    return output
