"""The manifest of a phase: what it was built from, in numbers and fingerprints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.curriculum.packing import Packing
from data_tools.curriculum.proportions import Kept
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe
from data_tools.curriculum.source import Source
from megatron_kaiyuan.data.phase import FORMAT, STRIDE, VERSION
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum


class MissingScores(NamedTuple):
    """Documents of a corpus whose score is NaN or null."""

    recipe: DatasetRecipe
    documents: int
    of: int

    def check(self, phase: PhaseRecipe) -> None:
        """Raises UserError when there are some and the recipe does not say what becomes of them."""
        if self.documents and self.recipe.missing_scores == "refuse":
            raise UserError(
                f"phase {phase.name}: corpus {self.recipe.corpus!r}: {self.documents:,} of {self.of:,} scores "
                f"{self.recipe.score!r} are missing; score it again, or write missing_scores: drop or lowest"
            )

    def __str__(self) -> str:
        what = "left out" if self.recipe.missing_scores == "drop" else "ranked lowest"
        return f"{self.recipe.corpus}: {self.documents:,} documents without {self.recipe.score} {what}"


def phase_manifest(
    phase: PhaseRecipe,
    sources: Sequence[Source],
    kept: Sequence[Kept],
    counts: Sequence[tuple[int, int]],
    missing: Sequence[MissingScores],
    packing: Packing | None,
    folder: Path,
    written: Path,
) -> dict[str, Any]:
    """manifest.json of a phase that will lie in `folder`.

    Args:
        kept: of each source, what `keep` left; counts: documents and tokens that it gives, every copy counted.
        written: where all other files of the phase are; each is named with its size and checksum.
    """
    corpora = [
        _corpus(source, folder, missing[number].documents, kept[number], counts[number])
        for number, source in enumerate(sources)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": phase.name,
        "order": phase.order,
        "rank_by": phase.rank_by,
        "seed": phase.seed,
        "documents": sum(documents for documents, _ in counts),
        "tokens": packing.tokens if packing else sum(tokens for _, tokens in counts),
        "stride": STRIDE,
        "packing": packing.as_json() if packing else None,
        "corpora": corpora,
        "recipe": phase.model_dump(mode="json"),
        "files": {
            path.name: {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in sorted(written.iterdir())
        },
    }


def _corpus(source: Source, folder: Path, missing: int, kept: Kept, count: tuple[int, int]) -> dict[str, Any]:
    corpus = source.corpus
    documents, tokens = count
    return {
        "name": source.name,
        "path": os.path.relpath(corpus.prefix.resolve(), folder.resolve()),
        "fingerprint": corpus.fingerprint(),
        "sample": corpus.sample_fingerprint(),
        "sequences": len(corpus),
        "score": source.recipe.score,
        "missing_scores": missing,
        "kept_documents": kept.rows,
        "kept_tokens": kept.tokens,
        "documents": documents,
        "tokens": tokens,
        "max_token_id": source.max_token_id(),
        "tokenizer": source.tokenizer,
    }
