"""The first stage: a shard's texts become digests and band keys, each as a sorted run on disk.

Three files a shard, about 12 bytes a band and 44 bytes a document:
    .bands: for each band a run of the documents that have shingles
    .digests: one run of the documents whose normalised text is not empty, by the first half of their digest
    .about: a row of ABOUT a document
A run is `count` keys of 8 bytes, ascending, then as many row numbers of 4 bytes. Rows count the shard's documents
from 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools._dedup import band_keys, sort_run
from data_tools.dedup.signatures import Recipe, text_memory
from data_tools.engines.stage import Record, Target
from data_tools.reading.arrow_values import in_words, is_number, to_doubles
from data_tools.reading.bad_rows import too_many
from data_tools.reading.documents import Batch, document_batches
from data_tools.reading.inputs import require_unchanged
from data_tools.reading.shard import DOCUMENT_ID, MOST_DOCUMENTS, TEXT, Shard
from data_tools.reading.tasks import Settings, Task
from megatron_kaiyuan.errors import UserError

BANDS, DIGESTS, ABOUT = ".bands", ".digests", ".about"
SUFFIXES = (BANDS, DIGESTS, ABOUT)
# `digest` is the second half; `copies`: how many documents of earlier runs it stands for, itself included.
ABOUT_ROW: np.dtype[Any] = np.dtype([("id", "<u8"), ("digest", "<u8"), ("score", "<f8"), ("copies", "<i8")])
DUPLICATE_COUNT = "duplicate_count"
# Columns that only this command writes.
WRITTEN = ("duplicate_of", "duplicate_in")
RUN_ENTRY_BYTES = 12
# Goes up when the files of the same input and recipe change.
VERSION = 1


@dataclass(frozen=True)
class Sign:
    """Does a shard.

    Attributes:
        score: a column of numbers; documents without one have the lowest score.
        max_bad_rows: that may be left out, in all shards together.
        exact_only: make no bands.
    """

    settings: Settings
    recipe: Recipe
    score: str | None = None
    exact_only: bool = False
    max_bad_rows: int = 0

    def identity(self) -> list[Any]:
        """What the files depend on beside the input."""
        # Neither changes what is written, and a run with another one finds the finished shards.
        recipe = replace(self.recipe, threshold=1.0, verify=True)
        return [VERSION, Recipe.VERSION, asdict(recipe), self.score, self.exact_only, self.settings.text_documents]

    def __call__(self, shard: Shard, target: Target) -> Record:
        """Read and sign one shard.

        Raises:
            UserError: it cannot be read, has too many bad rows, or its scores are no numbers.
        """
        found = _Signed(self.recipe, self.exact_only)
        bad: list[dict[str, Any]] = []
        rows, first_rows = 0, dict.fromkeys(range(len(shard.tasks)), 0)
        needed = {DUPLICATE_COUNT, *WRITTEN, *([self.score] if self.score else [])}
        for batch in document_batches(shard, self.settings, needed):
            _refuse_written(batch.documents.schema, shard.tasks[batch.task])
            rows += batch.rows
            first_rows[batch.task] = batch.first
            self._note_bad(shard, batch, bad)
            found.add(batch.documents, self._scores(batch, shard))
        for task in shard.tasks:
            require_unchanged(task.file)
        counts = found.write(target)
        return {"rows": rows, "first_rows": list(first_rows.values()), "bad": bad, **counts}

    def _note_bad(self, shard: Shard, batch: Batch, bad: list[dict[str, Any]]) -> None:
        for place in batch.bad:
            bad.append({"task": batch.task, **place._asdict()})
            if len(bad) > self.max_bad_rows:
                raise too_many(shard.tasks[batch.task], place, len(bad), self.max_bad_rows)

    def _scores(self, batch: Batch, shard: Shard) -> NDArray[np.float64]:
        """NaN where there is none. A field of JSON lines may be missing from a whole shard, a column may not."""
        documents = batch.documents
        if self.score is None or self.score not in documents.schema.names:
            if self.score and shard.has_columns:
                name = shard.tasks[batch.task].file.name
                raise UserError(f"{name}: has no column {self.score!r}; give another --score")
            return np.full(len(documents), np.nan)
        column = documents.column(self.score)
        if not is_number(column.type):
            raise self._no_numbers(shard, batch.task)
        return to_doubles(column).to_numpy(zero_copy_only=False)

    def _no_numbers(self, shard: Shard, number: int) -> UserError:
        """The error about a score, of the first file with such values: fields have the type of the shard."""
        assert self.score is not None
        for at in range(number, len(shard.tasks)):
            schema = next(document_batches(shard.of_one(at), self.settings, {self.score})).documents.schema
            if self.score in schema.names and not is_number(kind := schema.field(self.score).type):
                break
        name = shard.tasks[at].file.name
        return UserError(f"{name}: --score: column {self.score!r} is {in_words(kind)}, not numbers; name another one")


def _refuse_written(schema: pa.Schema, task: Task) -> None:
    """Refuse a document's columns that would be lost under columns of this command.

    Raises:
        UserError: naming the first.
    """
    at = schema.get_field_index(DUPLICATE_COUNT)
    wrong = [name for name in WRITTEN if name in schema.names]
    if at >= 0 and not is_number(schema.field(at).type):
        wrong.append(DUPLICATE_COUNT)
    if wrong:
        raise UserError(f"{task.file.name}: has a column {wrong[0]!r}, which dedup writes itself; rename or drop it")


class _Signed:
    """What is known of the documents of a shard so far."""

    def __init__(self, recipe: Recipe, exact_only: bool):
        # Digests do not depend on the permutations.
        self._recipe = replace(recipe, permutations=1, bands=1, rows=1) if exact_only else recipe
        self._signer = self._recipe.signer()
        self._bands = 0 if exact_only else recipe.bands
        self._empty = self._signer.sign(*text_memory(pa.array([""], pa.large_string())))[2][0]
        self._keys: list[NDArray[np.uint64]] = []
        self._has_shingles: list[NDArray[np.bool_]] = []
        self._digests: list[NDArray[np.uint64]] = []
        self._about: list[NDArray[Any]] = []

    def add(self, documents: pa.RecordBatch, scores: NDArray[np.float64]) -> None:
        """Sign documents, which come in the order of the shard."""
        signatures, shingles, digests = self._signer.sign(*text_memory(documents.column(TEXT)))
        if self._bands:
            self._keys.append(band_keys(signatures, self._bands, self._recipe.rows))
            self._has_shingles.append(shingles > 0)
        self._digests.append(digests)
        about = np.zeros(len(documents), ABOUT_ROW)
        about["id"] = documents.column(DOCUMENT_ID).to_numpy(zero_copy_only=False)
        about["digest"], about["score"], about["copies"] = digests[:, 1], scores, copies(documents)
        self._about.append(about)

    def write(self, target: Target) -> dict[str, int]:
        """Write the three files; how many documents are in each."""
        digests, about = np.concatenate(self._digests), np.concatenate(self._about)
        signed = np.flatnonzero(np.concatenate(self._has_shingles)) if self._bands else np.zeros(0, np.int64)
        hashed = np.flatnonzero((digests != self._empty).any(axis=1))
        with target.file(BANDS) as path, open(path, "wb") as file:
            for band in range(self._bands):
                _write_run(file, np.concatenate([keys[band] for keys in self._keys]), signed)
        with target.file(DIGESTS) as path, open(path, "wb") as file:
            _write_run(file, digests[:, 0], hashed)
        with target.file(ABOUT) as path, open(path, "wb") as file:
            about.tofile(file)
        scored = int(np.count_nonzero(~np.isnan(about["score"])))
        return {"documents": len(about), "signed": len(signed), "hashed": len(hashed), "scored": scored}


def _write_run(file: Any, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
    for values in sort_run(keys[rows], rows.astype(np.uint32)):
        values.tofile(file)


def copies(documents: pa.RecordBatch) -> NDArray[np.int64]:
    """How many documents each stands for: its `duplicate_count` of an earlier run, else 1."""
    at = documents.schema.get_field_index(DUPLICATE_COUNT)
    if at < 0:
        return np.ones(len(documents), np.int64)
    values = pc.fill_null(to_doubles(documents.column(at)), 1.0).to_numpy(zero_copy_only=False)
    return np.clip(np.nan_to_num(values, nan=1.0), 1, MOST_DOCUMENTS).astype(np.int64)
