"""`kaiyuan-data report`: what the phases of a recipe hold, as a page, as JSON and as a table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.curriculum.order_page import build_order_report
from data_tools.curriculum.recipe import OrderRecipe, load_order
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.pages.phase_mixes import PhaseMix, read_phases, stream_tables

_SEEN = (
    "times seen: tokens in all phases, every copy / tokens in the corpus. Tenths are of all its documents by score, "
    "those without one the worst."
)
DECILES = ["worst", *map(str, range(2, 10)), "best"]


def report_order(
    recipe: Path, overrides: Sequence[str], phases: Path, output: Path | None, as_json: bool, force: bool = False
) -> str:
    """Write the page about built phases, and return what to print.

    Args:
        phases: folder with one folder a phase, as `kaiyuan-data curriculum --output` left it.
        output: the page; default `phases`/report.html. With `as_json` it is written only when given.
        force: a page about other phases may be replaced.

    Returns:
        One JSON object with the page's figures, or the exposure table and a summary line.

    Raises:
        UserError: the recipe is wrong, or a phase of it is not there or damaged.
    """
    order = load_order(recipe, overrides)
    mixes = read_phases(_folders(recipe, order, phases))
    notes = _notes(order, mixes)
    tables = stream_tables(mixes)
    page = output or (None if as_json else phases / "report.html")
    if page:
        build_order_report(mixes, page, recipe.resolve().parent.name, notes, folder=phases, force=force)
    if as_json:
        return json.dumps({"recipe": str(recipe), "notes": notes, **tables}, ensure_ascii=False)
    plural = "phase" if len(mixes) == 1 else "phases"
    summary = f"report: {len(mixes)} {plural}, {len(tables['datasets'])} datasets, {tables['tokens']:,} tokens: {page}"
    return "\n".join([*exposure_lines(tables["exposure"]), *notes, summary])


def exposure_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The exposure table (`stream_tables`) as text: how often each quality decile is seen over all phases."""
    width = max(len("times seen"), *(len(row["dataset"]) + 2 for row in rows))
    lines = [f"{'times seen':<{width}}" + "".join(f"{decile:>7}" for decile in DECILES) + f"{'whole':>8}"]
    for row in rows:
        deciles = row["seen"] if len(row["seen"]) == len(DECILES) else [""] * len(DECILES)
        marked = row["dataset"] + (" *" if row["score"] and row["spread_evenly"] else "")
        figures = "".join(f"{_times(value):>7}" for value in deciles)
        lines.append(f"{marked:<{width}}{figures}{_times(row['whole']):>8}")
    lines += [
        f"* {row['dataset']}: {', '.join(row['spread_evenly'])} took it without {row['score']}; spread evenly"
        for row in rows
        if row["score"] and row["spread_evenly"]
    ]
    return [*lines, _SEEN]


def _times(value: float | str | None) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value or "-"


def _folders(recipe: Path, order: OrderRecipe, phases: Path) -> list[Path]:
    folders = [phases / phase.name for phase in order.phases]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such phase; build it: kaiyuan-data curriculum {recipe} --output {phases}")
    return folders


def _notes(order: OrderRecipe, mixes: Sequence[PhaseMix]) -> list[str]:
    changed = [
        f"{phase.name} was built from another recipe than this one; the figures are of what was built"
        for phase, mix in zip(order.phases, mixes, strict=True)
        if mix.recipe != phase.model_dump(mode="json")
    ]
    return changed + [note for mix in mixes for note in mix.notes]
