"""A shard of documents through the steps: the documents that stay, the ones that are dropped, and the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.engines.stage import Record, Target
from data_tools.reading.bad_rows import too_many
from data_tools.reading.common_schema import cast
from data_tools.reading.documents import Batch, document_batches
from data_tools.reading.group_schema import group_schema
from data_tools.reading.inputs import require_unchanged
from data_tools.reading.shard import DOCUMENT_ID, Shard
from data_tools.reading.tasks import Settings
from data_tools.steps.step import DROPPED, Step, with_column
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

# Columns: a row a document, to be joined by its id, where the documents are not written again.
DOCUMENTS, LEFT_OUT, COLUMNS = ".parquet", ".dropped.parquet", ".columns.parquet"
# Full row groups make a file independent of how its rows came in batches, and of a size that a task can be cut at.
_ROWS_PER_GROUP = 4096
# Few, because a row may be a book.
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class ApplySteps:
    """The work of a stage whose tasks are shards: reads a shard's documents, applies the steps, writes what stays.

    `NAME.parquet` holds the documents that stay, in the order of the input, and `NAME.dropped.parquet` the others with
    their reasons. The record counts them.

    Attributes:
        max_bad_rows: lines that hold no document and may be left out, in all shards together.
        keep_dropped: the file of dropped rows has their text too.
        only_dropped: columns of the steps that say why a row is dropped, which the file of the others does not have.
    """

    steps: tuple[Step, ...]
    settings: Settings
    max_bad_rows: int = 0
    keep_dropped: bool = True
    only_dropped: tuple[str, ...] = ()

    def __call__(self, shard: Shard, target: Target) -> Record:
        """Do one shard.

        Raises:
            UserError: the input cannot be read, or has too many bad rows.
        """
        counts: Counter[str] = Counter()
        bad: list[dict[str, Any]] = []
        first_rows: dict[int, int] = {}
        with ExitStack() as stack:
            kept = stack.enter_context(ShardFile(target, DOCUMENTS))
            dropped = stack.enter_context(ShardFile(target, LEFT_OUT))
            for read in _joined(self._read(shard, bad, counts, first_rows), len(shard.tasks)):
                try:
                    documents = self._apply(read)
                except UserError as error:  # a column of another type than in other files, or of a step's name
                    raise self._of_file(shard, error) from error
                reasons = documents.column(DROPPED)
                stays = pc.is_null(reasons)
                kept.write(documents.filter(stays).drop_columns([DROPPED, *self.only_dropped]))
                out = documents.filter(pc.invert(stays))
                dropped.write(out if self.keep_dropped else out.select([DOCUMENT_ID, DROPPED, *self.only_dropped]))
                counts.update(reasons.drop_null().to_pylist())
            for task in shard.tasks:
                require_unchanged(task.file)
        files = {suffix: checksum(target.path(suffix)) for suffix in (DOCUMENTS, LEFT_OUT)}
        return {
            "first_rows": [first_rows[number] for number in range(len(shard.tasks))],
            "rows": counts.pop("", 0),
            "documents": kept.rows,
            "dropped": dict(sorted(counts.items())),
            "bad": bad,
            "checksums": files,
        }

    def _read(
        self, shard: Shard, bad: list[dict[str, Any]], counts: Counter[str], first_rows: dict[int, int]
    ) -> Iterator[pa.RecordBatch]:
        """The documents of a shard; what else there is to its rows is noted."""
        schema = group_schema(shard, self.settings)
        for batch in document_batches(shard, self.settings):
            self._note(batch, shard, bad, counts)
            first_rows[batch.task] = batch.first
            yield batch.documents if schema is None else cast(batch.documents, schema)

    def _apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        # Reasons of an earlier command do not count: what it dropped may be the input of this one.
        documents = with_column(documents, DROPPED, pa.nulls(len(documents), pa.string()))
        for step in self.steps:
            documents = step.apply(documents)
        return documents

    def _of_file(self, shard: Shard, error: UserError) -> UserError:
        """The error of the first file whose own columns the steps refuse; else of all of them."""
        for at in range(len(shard.tasks)):
            own = next(document_batches(shard.of_one(at), self.settings)).documents
            try:
                self._apply(own)
            except UserError as found:
                return UserError(f"{shard.tasks[at].file.name}: {found}")
        return UserError(f"{shard.group.place}: {error}")

    def _note(self, batch: Batch, shard: Shard, bad: list[dict[str, Any]], counts: Counter[str]) -> None:
        counts[""] += batch.rows
        counts.update(batch.left_out)
        for place in batch.bad:
            bad.append({"task": batch.task, **place._asdict()})
            counts[f"bad row: {place.reason}"] += 1
            if len(bad) > self.max_bad_rows:
                raise too_many(shard.tasks[batch.task], place, len(bad), self.max_bad_rows)


def _joined(batches: Iterable[pa.RecordBatch], files: int) -> Iterator[pa.RecordBatch]:
    """The batches of one file as they are; those of several small files joined: a step costs more than a row."""
    if files == 1:
        yield from batches
        return
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if waiting and batch.schema != waiting[0].schema:
            yield pa.concat_batches(waiting)
            waiting = []
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


class ShardFile:
    """A Parquet file of one target, with full row groups only. A context manager."""

    def __init__(self, target: Target, suffix: str):
        self._target, self._suffix = target, suffix
        self._stack = ExitStack()
        self._path: Path | None = None
        self._writer: Any = None
        self._pending: list[pa.RecordBatch] = []
        self._waiting = self.rows = 0

    def __enter__(self) -> ShardFile:
        self._path = self._stack.enter_context(self._target.file(self._suffix))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is None and self._writer is not None:
            self._write_groups(1)
            self._writer.close()
        elif self._writer is not None:
            self._writer.close()
        return self._stack.__exit__(kind, error, trace)

    def write(self, rows: pa.RecordBatch) -> None:
        """Append rows; the first batch decides the schema, even when it is empty."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, rows.schema, compression="zstd")
        self.rows += len(rows)
        self._pending.append(rows)
        self._waiting += len(rows)
        if self._waiting >= _ROWS_PER_GROUP:
            self._write_groups(_ROWS_PER_GROUP)

    def _write_groups(self, least: int) -> None:
        """Write what waits in row groups of the full size, and a last one that has `least` rows or more."""
        waiting = pa.Table.from_batches(self._pending, self._writer.schema)
        while len(waiting) >= least:
            self._writer.write_table(waiting.slice(0, _ROWS_PER_GROUP).combine_chunks())
            waiting = waiting.slice(_ROWS_PER_GROUP)
        self._pending, self._waiting = waiting.to_batches(), len(waiting)
