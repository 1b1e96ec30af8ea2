"""The order recipe of windows: a shuffled phase for each, all with one budget of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.curriculum.recipe import MOST_COPIES
from data_tools.windows.measure import MeasuredWindow, WindowedDataset
from megatron_kaiyuan.config import dump_yaml
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_text

_HEAD = """\
# Windows of scored corpora, as kaiyuan-data quantile cut them: a phase for each, all of {tokens:,} tokens.
# To change them, edit a copy and build it: kaiyuan-data curriculum COPY.yaml --output PHASES
"""


def budget(windows: Sequence[MeasuredWindow], asked: int | None, repeat: bool) -> int:
    """Tokens of every phase: those asked for, or as many as the smallest window holds.

    Raises:
        UserError: a window holds fewer than are asked for, and may not be repeated.
    """
    least = min(windows, key=lambda window: window.tokens)
    if asked is None or asked <= least.tokens:
        return asked or least.tokens
    short = sum(window.tokens < asked for window in windows)
    if not repeat:
        raise UserError(
            f"--tokens {asked:,}: {short} of {len(windows)} windows hold fewer, {least.name} {least.tokens:,}; "
            f"lower it to {least.tokens:,}, widen the windows, or let them be repeated with --repeat"
        )
    if asked > MOST_COPIES * least.tokens:
        raise UserError(
            f"--tokens {asked:,}: is more than {MOST_COPIES} times the {least.tokens:,} tokens of {least.name}; lower "
            "it, or widen the windows"
        )
    return asked


def write_order(path: Path, datasets: Sequence[WindowedDataset], tokens: int, seed: int) -> None:
    """Write the recipe; its prefixes are absolute, so that it is found from any folder."""
    recipe: Mapping[str, Any] = {
        "corpora": {dataset.recipe.corpus: str(dataset.prefix.resolve()) for dataset in datasets},
        "phases": [_phase(dataset, window, tokens, seed) for dataset in datasets for window in dataset.windows],
    }
    text = dump_yaml(recipe, default_flow_style=None, width=200, allow_unicode=True)
    write_text(path, _HEAD.format(tokens=tokens) + text)


def _phase(dataset: WindowedDataset, window: MeasuredWindow, tokens: int, seed: int) -> dict[str, Any]:
    line: dict[str, Any] = {"corpus": window.dataset, "score": dataset.recipe.score, "keep": window.target.keep}
    if dataset.missing:
        line["missing_scores"] = dataset.recipe.missing_scores
    if tokens > window.tokens:
        line["repeat"] = math.ceil(tokens / window.tokens)
    return {"name": window.name, "order": "shuffle", "seed": seed, "tokens": tokens, "datasets": [line]}
