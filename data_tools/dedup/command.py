"""The command line's words as a request, and the report as lines."""

from __future__ import annotations

import json
from typing import Any

from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.keepers import Rules
from data_tools.dedup.report import report_lines
from data_tools.dedup.request import Request, default_max_cluster, make_recipe
from data_tools.engines.choose import choose_engine
from data_tools.steps.datasets import reading_settings


def run(
    preset: str | None,
    recipe: dict[str, Any],
    rules: dict[str, Any],
    reading: dict[str, Any],
    engine: tuple[str, int],
    as_json: bool,
    **request: Any,
) -> list[str]:
    """Deduplicate; what the first process prints.

    Args:
        recipe, rules: None where the user gave nothing.
        engine: its name, and how many workers.

    Raises:
        UserError: see `deduplicate`.
    """
    made = make_recipe(preset, **recipe)
    if rules["max_cluster"] is None:
        rules = {**rules, "max_cluster": default_max_cluster(made)}
    wanted = Request(recipe=made, rules=Rules(**rules), **request)
    chosen = choose_engine(*engine)
    report = deduplicate(wanted, reading_settings(**reading), chosen)
    if not chosen.is_first:
        return []
    if as_json:
        return [json.dumps(report, ensure_ascii=False)]
    threshold = wanted.recipe.threshold if wanted.recipe.verify else 0.0
    return [
        *report_lines(report, threshold),
        f"dedup: {wanted.output} is written; {wanted.output / 'report.json'} has more",
    ]
