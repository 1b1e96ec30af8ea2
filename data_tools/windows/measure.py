"""What the windows of a dataset hold: one sort by score, in the builder's memory and by its rules for ties."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools._curriculum import Builder
from data_tools.curriculum.memory import default_memory, rows_memory
from data_tools.curriculum.recipe import DatasetRecipe
from data_tools.curriculum.source import Source
from data_tools.scores.quantiles import choice_seed
from data_tools.windows.targets import TargetWindow
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.progress import Progress


@dataclass(frozen=True)
class MeasuredWindow:
    """One window of a dataset.

    Attributes:
        bounds: the shares from the best that its documents span, in what the target counts.
        documents, tokens: that it holds, each document once.
        lowest, highest: scores; NaN: of documents without one, which `missing_scores: lowest` takes.
    """

    dataset: str
    target: TargetWindow
    bounds: tuple[float, float]
    documents: int
    tokens: int
    lowest: float
    highest: float

    @property
    def name(self) -> str:
        """Of its phase, which is a folder: a bound 1/7 is 1_7 in it."""
        return f"{self.dataset}_{self.target.bounds}".replace("/", "_")


@dataclass(frozen=True)
class WindowedDataset:
    """A dataset and its windows.

    Attributes:
        documents, tokens: of the corpus, those that are dropped for want of a score left out.
        missing: documents without a score.
    """

    recipe: DatasetRecipe
    prefix: Path
    documents: int
    tokens: int
    missing: int
    windows: list[MeasuredWindow]


def measure(
    recipe: DatasetRecipe,
    prefix: Path,
    targets: Sequence[TargetWindow],
    seed: int,
    threads: int,
    memory: int | None,
    scratch: Path,
) -> WindowedDataset:
    """Sort a corpus by its score once, and count what lies in each window.

    Args:
        recipe: names the corpus, its score and what becomes of documents without one.
        seed: of the draws between equal scores.
        memory: bytes, beyond which it works with files in `scratch`; they change the speed, never the result.

    Raises:
        UserError: the corpus or its score is missing or wrong, or a window is empty.
    """
    source = Source(recipe, prefix, threads)
    sequences = len(source.corpus)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        limit = rows_memory(memory or default_memory(), 1)
        builder = Builder(os.fspath(folder), memory=limit, shuffle=True, threads=threads)
        own = choice_seed(seed, recipe.corpus)
        builder.begin(scored=True, choice_seed=own, order_seed=own, expected=sequences)
        with Progress(f"{recipe.corpus}: read and sort", sequences, "documents") as progress:
            for first, lengths, scores in source.rows():
                builder.add(first, lengths, scores, recipe.missing_scores == "drop")
                progress.advance(len(lengths))
        documents, tokens, weight, missing = builder.rows, builder.tokens, builder.weight, builder.missing
        if missing and recipe.missing_scores == "refuse":
            raise UserError(
                f"corpus {recipe.corpus!r} ({prefix}): {missing:,} of {sequences:,} scores {recipe.score!r} are "
                "missing; score it again, or say --missing-scores drop or lowest"
            )
        spans = [target.span(documents, weight) for target in targets]
        by_tokens = targets[0].by_tokens
        found = builder.measure(spans, by_tokens)
    total = weight if by_tokens else documents
    windows = [_window(recipe, target, row, total) for target, row in zip(targets, found, strict=True)]
    return WindowedDataset(recipe, prefix, documents, tokens, missing, windows)


def _window(recipe: DatasetRecipe, target: TargetWindow, row: tuple[Any, ...], total: int) -> MeasuredWindow:
    documents, tokens, begin, end, lowest, highest = row
    if not tokens:
        raise UserError(
            f"corpus {recipe.corpus!r}: window {target.bounds} of its {total:,} "
            f"{'tokens' if target.by_tokens else 'documents'} with a score {recipe.score!r} holds no token; widen it"
        )
    bounds = ((total - end) / total, (total - begin) / total)
    return MeasuredWindow(recipe.corpus, target, bounds, documents, tokens, lowest, highest)
