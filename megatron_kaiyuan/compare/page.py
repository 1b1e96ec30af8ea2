"""A comparison as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.compare.compare import CAUTION, TIME, Comparison
from megatron_kaiyuan.compare.figures import comparison_figures
from megatron_kaiyuan.compare.measures import Measure
from megatron_kaiyuan.compare.runs import Run
from megatron_kaiyuan.compare.show import difference_text, title, value_text, verdict_text
from megatron_kaiyuan.outputs import check, identity_of
from megatron_kaiyuan.pages.page import earlier_page, page_output, render, write_page

GENERATOR = "kaiyuan compare"


def check_place(folders: Sequence[Path], output: Path, force: bool) -> None:
    """Refuse a place that holds something else, before runs are read.

    Raises:
        UserError: something else lies there, or it cannot be written.
    """
    check(page_output(output), _identity(folders, output), earlier_page(GENERATOR), force)


def write_comparison(comparison: Comparison, output: Path, force: bool = False) -> None:
    """Write the page; it refers to nothing outside itself.

    Raises:
        UserError: something else lies there.
    """
    identity = _identity([run.folder for run in comparison.runs], output)
    names = [run.name for run in comparison.runs]
    page = render(
        "page.html",
        __package__,
        generator=GENERATOR,
        identity=identity,
        name=", ".join(names),
        runs=[_run(run) for run in comparison.runs],
        names=names,
        measures=[_measure(measure) for measure in comparison.measures],
        figures=list(comparison_figures(comparison.runs)),
        fields=[
            ("Configuration", comparison.configuration),
            ("Environment", comparison.environment),
        ],
        notes=comparison.all_notes(),
        caution=CAUTION,
        time=TIME,
    )
    write_page(output, page, identity, GENERATOR, force)


def _identity(folders: Sequence[Path], output: Path) -> str:
    """Of which runs a page is, in order: where they lie from the page, so that all may be moved together."""
    once = dict.fromkeys(folder.resolve() for folder in folders)
    return identity_of("comparison", *(os.path.relpath(folder, output.parent.resolve()) for folder in once))


def _run(run: Run) -> dict[str, str]:
    return {"name": run.name, "steps": f"{run.steps:,}", "tokens": f"{run.end:,}", "folder": str(run.folder)}


def _measure(measure: Measure) -> dict[str, Any]:
    """The texts of one measure, a cell for each run, and how each compares with the first."""
    return {
        "title": title(measure),
        "note": measure.note,
        "cells": [
            {
                "value": value_text(measure, estimate),
                "difference": difference_text(measure, difference),
                "verdict": verdict_text(measure, difference),
            }
            for estimate, difference in zip(measure.estimates, measure.differences, strict=True)
        ],
    }
