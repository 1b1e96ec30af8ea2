"""What an audit looks at: the scores and labels of corpora or documents, and the texts of a few of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools.corpora.corpus_files import read_manifest
from data_tools.corpora.sidecar import sidecar_rows
from data_tools.reading.arrow_values import is_number, stored_type, to_doubles
from data_tools.reading.documents import document_batches
from data_tools.reading.shard import DOCUMENT_ID, TEXT
from data_tools.reading.tasks import Settings
from data_tools.scores.quantiles import draws
from data_tools.steps.datasets import Dataset
from data_tools.tokenizers.decoding import CorpusText
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.progress import counted

# Columns that every table gets: which dataset, where in it, and a draw by which samples are taken.
DATASET, PLACE, DRAW, BYTES = "dataset", "place", "draw", "bytes"
_OWN = (DATASET, PLACE, DRAW)


class ScoredDataset(Protocol):
    """A dataset."""

    @property
    def name(self) -> str:
        """Of the dataset; "" where it has none."""

    def columns(self) -> Iterator[pa.RecordBatch]:
        """All columns but the text, with `place` (uint64) and `bytes`."""

    def texts(self, places: Collection[int]) -> dict[int, str]:
        """The texts at some places."""


@dataclass(frozen=True)
class CorpusSource:
    """A corpus with its sidecar; a place is a sequence."""

    name: str
    prefix: Path
    tokenizer: Path | None = None

    def columns(self) -> Iterator[pa.RecordBatch]:
        read_manifest(self.prefix)
        first = 0
        for batch in sidecar_rows(metadata_path(self.prefix)):
            names = [name for name in batch.schema.names if name not in _OWN]
            yield _placed(batch.select(names), np.arange(first, first + len(batch), dtype=np.uint64))
            first += len(batch)

    def texts(self, places: Collection[int]) -> dict[int, str]:
        wanted = sorted(places)
        return dict(zip(wanted, CorpusText(self.prefix, self.tokenizer).texts(wanted), strict=True))


@dataclass(frozen=True)
class DocumentSource:
    """A dataset of documents; a place is that of the row among its sound rows."""

    dataset: Dataset
    settings: Settings

    @property
    def name(self) -> str:
        return self.dataset.name

    def columns(self) -> Iterator[pa.RecordBatch]:
        for first, batch in self._batches():
            sizes = pc.binary_length(batch.column(TEXT))
            names = [name for name in batch.schema.names if name not in (*_OWN, TEXT, DOCUMENT_ID, BYTES)]
            places: NDArray[np.uint64] = np.arange(first, first + len(batch), dtype=np.uint64)
            yield _placed(batch.select(names).append_column(BYTES, sizes), places)

    def texts(self, places: Collection[int]) -> dict[int, str]:
        wanted: NDArray[np.int64] = np.array(sorted(places), np.int64)
        found: dict[int, str] = {}
        for first, batch in self._batches():
            mine = wanted[(wanted >= first) & (wanted < first + len(batch))]
            found |= dict(zip(mine.tolist(), batch.column(TEXT).take(pa.array(mine - first)).to_pylist(), strict=True))
            if len(found) == len(wanted):
                break
        return found

    def _batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        first = 0
        for shard in self.dataset.shards:
            for batch in document_batches(shard, self.settings):
                yield first, batch.documents
                first += len(batch.documents)


def read_table(
    sources: Sequence[ScoredDataset], columns: Mapping[str, str], most: int, seed: int
) -> tuple[pa.Table, int]:
    """The documents of all sources, or `most` of them by the lowest draws, and how many there are in all.

    Args:
        columns: that one of the sources must have, and the option that names each; in other sources they are null.

    Returns:
        Columns `dataset` (number of the source), `place`, `draw`, and those of the sources whose type can be looked at:
        numbers as float64, text as string.

    Raises:
        UserError: no source has one of `columns`, or it holds neither numbers nor text labels.
    """
    kept: list[pa.Table] = []
    rows, total = 0, 0
    names: dict[str, None] = {}
    for number, source in enumerate(sources):
        for batch in counted(source.columns(), "audit: read", size=len):
            table = _simple(batch)
            names |= dict.fromkeys(table.column_names)
            draw = draws(seed + number, table.column(PLACE).to_numpy().astype(np.uint64))
            table = table.append_column(DRAW, pa.array(draw))
            kept.append(table.append_column(DATASET, pa.array(np.full(len(table), number, np.int64))))
            rows, total = rows + len(table), total + len(table)
            if rows > 2 * most:
                kept = [_lowest(kept, most)]
                rows = len(kept[0])
    known = ", ".join(name for name in names if name != PLACE) or "none"
    for column, option in columns.items():
        if column == TEXT and column not in names:
            raise UserError(f"{option} {column}: is the text of the documents; name another column, there are {known}")
        if column not in names:
            raise UserError(
                f"{option} {column}: no document has a column of numbers or labels so named; there are {known}"
            )
    return _lowest(kept, most), total


def read_rows(source: ScoredDataset, places: NDArray[np.uint64]) -> pa.Table:
    """The rows of one source at some places, ascending, each once; columns as of `read_table`, without draws."""
    kept = []
    for batch in source.columns():
        table = _simple(batch)
        kept.append(table.filter(pa.array(np.isin(table.column(PLACE).to_numpy(), places))))
    table = pa.concat_tables(kept, promote_options="permissive")
    return table.append_column(DATASET, pa.array(np.zeros(len(table), np.int64)))


def _placed(batch: pa.RecordBatch, places: np.ndarray) -> pa.RecordBatch:
    return batch.append_column(PLACE, pa.array(places))


def _simple(batch: pa.RecordBatch) -> pa.Table:
    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type
        if name == PLACE:
            found[name] = column
        elif pa.types.is_boolean(kind):
            found[name] = column.cast(pa.int8()).cast(pa.float64())
        elif pa.types.is_null(kind):
            found[name] = column
        elif is_number(kind):
            found[name] = to_doubles(column)
        elif pa.types.is_string(stored_type(kind)) or pa.types.is_large_string(stored_type(kind)):
            found[name] = column.cast(pa.string())
    return pa.table(found)


def _lowest(tables: Sequence[pa.Table], most: int) -> pa.Table:
    table = pa.concat_tables(tables, promote_options="permissive")
    if len(table) <= most:
        return table
    order = np.sort(np.argpartition(table.column(DRAW).to_numpy(), most)[:most])
    return table.take(pa.array(order))
