"""The metadata sidecar of a corpus: Parquet, row i for sequence i."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from megatron_kaiyuan.data.metadata import AGAIN, FIXED, open_metadata, whole_text
from megatron_kaiyuan.errors import UserError

ROWS_PER_GROUP = 1 << 16


def sidecar_schema(scores: Sequence[str], columns: Sequence[str] = ()) -> pa.Schema:
    """Tokens and UTF-8 bytes of each sequence, domain, source, then text `columns` and float `scores`.

    Raises:
        UserError: a name appears twice, or is one of the first four.
    """
    names = [*FIXED, *columns, *scores]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"metadata column {name!r}: there are two of that name; rename or leave out one of them")
    fields = [*FIXED.items(), *((name, pa.string()) for name in columns), *((name, pa.float64()) for name in scores)]
    return pa.schema(fields)


class SidecarWriter:
    """Writes full row groups only, so that the file does not depend on how the rows came in batches.

    A context manager: the file is whole when the block ends well.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema = schema
        # Given a path, pyarrow looks for a file system that fits, and imports fsspec for it.
        self._file = open(path, "wb")  # noqa: SIM115
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._pending = schema.empty_table()

    def __enter__(self) -> SidecarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
            return
        with suppress(OSError):  # the disk that was full is still full, and the first error is the one to see
            self._writer.close()
        with suppress(OSError):
            self._file.close()

    def finish(self) -> None:
        """Write what is left, and the footer. Once is enough."""
        if self._writer.is_open:
            self._writer.write_table(self._pending.combine_chunks())
            self._writer.close()
            self._file.close()

    def write(self, rows: pa.Table) -> None:
        """Append rows of the schema."""
        rows = pa.concat_tables([self._pending, rows])
        while len(rows) >= ROWS_PER_GROUP:
            self._writer.write_table(rows.slice(0, ROWS_PER_GROUP).combine_chunks())
            rows = rows.slice(ROWS_PER_GROUP)
        self._pending = rows


def sidecar_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All rows, a row group's worth at a time.

    Raises:
        UserError: a column is missing, or a page is damaged.
    """
    with open_metadata(path) as file:
        _require(path, file, columns)
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=None if columns is None else list(columns)):
            yield whole_text(batch)


def sidecar_slice(path: Path, first: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows first, first + 1, ..., stop - 1; only the row groups that hold them are read.

    Raises:
        UserError: a column or a row is missing, or a page is damaged.
    """
    with open_metadata(path) as file:
        _require(path, file, columns)
        if stop > file.metadata.num_rows:
            raise UserError(f"{path}: has no row {stop - 1}; {AGAIN}")
        groups: list[int] = []
        before, start = 0, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start < stop and start + rows > first:
                before = before if groups else start
                groups.append(group)
            start += rows
        table = whole_text(file.read_row_groups(groups, None if columns is None else list(columns)))
    return table.slice(first - before, stop - first)


def _require(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None) -> None:
    if missing := set(columns or ()) - set(file.schema_arrow.names):
        raise UserError(f"{path}: has no column {', '.join(sorted(missing))}; {AGAIN}")


def check_sidecar(path: Path, lengths: NDArray[np.int32]) -> None:
    """Compare the tokens of each row with the lengths in the index.

    Raises:
        UserError: there are more or fewer rows, or one differs.
    """
    row = 0
    for batch in sidecar_rows(path, ["tokens"]):
        found = batch.column(0)
        if found.type != pa.int32() or found.null_count:
            raise UserError(f"{path}: its token counts are not int32, or some are missing; {AGAIN}")
        expected = lengths[row : row + len(batch)]
        if len(expected) == len(batch):
            differ = found.to_numpy() != expected
            if differ.any():
                at = int(differ.argmax())
                raise UserError(f"{path}: row {row + at} says {found[at]} tokens, the index {expected[at]}; {AGAIN}")
        row += len(batch)
    if row != len(lengths):
        raise UserError(f"{path}: has {row} rows for {len(lengths)} sequences; {AGAIN}")
