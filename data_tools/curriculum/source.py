"""One corpus as the builder reads it: its lengths and scores, a piece at a time, never the whole of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools import _index
from data_tools.corpora.corpus_files import manifest_path, read_manifest
from data_tools.curriculum.recipe import DatasetRecipe, nearest
from megatron_kaiyuan.data.indexed import HEADER, IndexedCorpus, bin_path, idx_path
from megatron_kaiyuan.data.metadata import metadata_path, open_metadata
from megatron_kaiyuan.data.tokenizer_identity import tokenizer_of_corpus
from megatron_kaiyuan.errors import UserError

# Rows read at a time: the lengths and scores of one piece are 3 MB.
_ROWS = 1 << 18

Rows = tuple[int, NDArray[np.int32], "NDArray[np.float64] | None"]


class Source:
    """A dataset of a phase and its corpus.

    Attributes:
        recipe: its line in the phase.
        corpus: opened; no row of it is read through its map.
        tokenizer: that made the corpus; None: unknown.

    Raises:
        UserError: the corpus is missing or damaged, or has no such score.
    """

    def __init__(self, recipe: DatasetRecipe, prefix: Path, threads: int):
        self.recipe = recipe
        self.corpus = IndexedCorpus(prefix, check=None)
        self.tokenizer = tokenizer_of_corpus(prefix)
        self._index = idx_path(prefix)
        try:
            _index.check(os.fsencode(self._index), bin_path(prefix).stat().st_size, threads)
        except ValueError as error:
            raise UserError(f"{self._index}: {error}; make the corpus again") from error
        if recipe.score is not None:
            _check_scores(self.corpus, recipe.score)

    @property
    def name(self) -> str:
        return self.recipe.corpus

    def rows(self) -> Iterator[Rows]:
        """Number of the first sequence, int32 lengths and float64 scores (NaN: missing; None: unscored) of a piece."""
        first = 0
        with open(self._index, "rb") as file:
            file.seek(HEADER.size)
            for scores, size in self._scores() if self.recipe.score else self._sizes():
                lengths = np.fromfile(file, "<i4", size).astype(np.int32, copy=False)
                yield first, lengths, scores
                first += size

    def max_token_id(self) -> int | None:
        """From the corpus manifest; a stock Megatron corpus has none, and scanning its tokens would take hours."""
        prefix = self.corpus.prefix
        return read_manifest(prefix)["max_token_id"] if manifest_path(prefix).is_file() else None

    def _sizes(self) -> Iterator[tuple[None, int]]:
        for first in range(0, len(self.corpus), _ROWS):
            yield None, min(_ROWS, len(self.corpus) - first)

    def _scores(self) -> Iterator[tuple[NDArray[np.float64], int]]:
        path = metadata_path(self.corpus.prefix)
        with open_metadata(path) as file:
            for batch in file.iter_batches(_ROWS, columns=[self.recipe.score]):
                column = batch.column(0).cast(pa.float64(), safe=False)
                yield column.to_numpy(zero_copy_only=False), len(column)


def check_dataset(recipe: DatasetRecipe, prefix: Path) -> None:
    """Check from headers alone that a corpus and its score exist.

    Raises:
        UserError: the corpus is missing or damaged, or has no such score.
    """
    corpus = IndexedCorpus(prefix, check=None)
    if recipe.score is not None:
        _check_scores(corpus, recipe.score)


def _check_scores(corpus: IndexedCorpus, column: str) -> None:
    path = metadata_path(corpus.prefix)
    if not path.exists():
        raise UserError(f"{path}: not found, so the corpus has no score {column!r}; make it with preprocess")
    with open_metadata(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    if column not in schema.names:
        known = [field.name for field in schema if pa.types.is_floating(field.type)]
        add = nearest(column, known)
        if not known:
            add = (
                f"it has none: name the field of the text to preprocess, as --score-keys {column}, or add a score with "
                "kaiyuan-data score --corpus"
            )
        raise UserError(f"{path}: unknown score column {column!r}; {add}")
    kind = schema.field(column).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"{path}: column {column!r} holds no numbers; name a score column")
    if rows != len(corpus):
        raise UserError(f"{path}: {rows} rows for {len(corpus)} sequences; make the corpus again")
