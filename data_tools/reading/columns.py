"""Rows that come in: Parquet files, by row groups.

A footer is asked for the `num_rows` and `total_byte_size` of row groups and for nothing else in them. pyarrow checks
the sizes and statistics of a column when its entry is asked for, and does so where no C++ exception may leave: a
damaged one would end the process. Reading the column makes the same checks, and raises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.reading.arrow_values import in_words, is_bytes, is_number, plain_values, stored_type, to_doubles
from data_tools.reading.inputs import InputFile, open_stored
from data_tools.reading.packing import advice
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import Rows
from megatron_kaiyuan.errors import UserError, excerpt

# Few, because a row may be a book.
_ROWS_AT_ONCE = 128
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
_LABELS = ("domain", "source")
_NOT_TEXT = object()


def column_rows(task: Task, settings: Settings) -> Iterator[Rows]:
    """The rows of a task over a Parquet file. A null text is a bad row.

    Raises:
        UserError: the file is not a Parquet file, is damaged, lacks a column or has it twice.
    """
    with open_table(task.file) as parquet:
        fields = _fields(task.file, parquet.schema_arrow, settings)
        groups, _ = _row_groups(parquet.metadata, task)
        columns = sorted({column for column, _ in fields.values()})
        first = 1
        for batch in all_rows(parquet, groups, columns):
            yield _rows(batch, fields, settings, first)
            first += len(batch)


def record_batches(task: Task, text: str, others: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The columns of a task over a Parquet file; at least one batch comes.

    Args:
        text: the column that holds the text.
        others: more columns to read, where they are there; None: all.

    Raises:
        UserError: the file is not a Parquet file, is damaged, lacks the column or has one twice.
    """
    with open_table(task.file) as parquet:
        schema = parquet.schema_arrow
        for name in schema.names:
            if (count := schema.names.count(name)) > 1:
                raise UserError(f"{task.file.name}: has {count} columns {name!r}; rename or drop all but one")
        _fields(task.file, schema, Settings(Path(), (text,)))
        groups, _ = _row_groups(parquet.metadata, task)
        names = [name for name in schema.names if others is None or name == text or name in others]
        yield _without_views(pa.RecordBatch.from_pylist([], schema=pa.schema([schema.field(name) for name in names])))
        for batch in all_rows(parquet, groups, names):
            yield _without_views(batch)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """View types as the ones that Arrow has kernels for."""
    fields = [field.with_type(_VIEWS.get(field.type, field.type)) for field in batch.schema]
    return batch.cast(pa.schema(fields)) if any(field.type in _VIEWS for field in batch.schema) else batch


def rows_before(task: Task) -> int:
    """Rows of the file that belong to earlier tasks, for messages about a place in its middle."""
    with open_table(task.file) as parquet:
        return _row_groups(parquet.metadata, task)[1]


@contextmanager
def open_table(file: InputFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        UserError: it is not one, or what the block reads of it is damaged.
    """
    try:
        with open_stored(file) as stored, pq.ParquetFile(stored) as parquet:
            _check_rows(parquet.metadata.num_rows, _rows_of(parquet, range(parquet.metadata.num_row_groups)))
            yield parquet
    except pa.ArrowException as error:
        raise UserError(f"{file.name}: cannot be read ({excerpt(error)}); {advice(error)}") from error


def all_rows(parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of row groups.

    Raises:
        pa.ArrowInvalid: the rows are not as many as the footer says. pyarrow compares only columns that it reads
            together: of one alone, a damaged entry leaves rows out without an error.
    """
    rows = 0
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns) if groups else ():
        rows += len(batch)
        yield batch
    _check_rows(rows, _rows_of(parquet, groups))


def _rows_of(parquet: pq.ParquetFile, groups: Sequence[int]) -> int:
    return sum(parquet.metadata.row_group(group).num_rows for group in groups)


def _check_rows(rows: int, expected: int) -> None:
    if rows != expected:
        raise pa.ArrowInvalid(f"{rows:,} rows where its footer says {expected:,}")


def _row_groups(metadata: Any, task: Task) -> tuple[list[int], int]:
    """The row groups that begin in the task, and the rows before them.

    Where one begins is reckoned from the groups' sizes before compression, as shares of the file's bytes.
    """
    sizes = [max(metadata.row_group(index).total_byte_size, 0) for index in range(metadata.num_row_groups)]
    total = max(sum(sizes), 1)
    mine, before, passed = [], 0, 0
    for index, size in enumerate(sizes):
        start = min(passed * task.file.size // total, task.file.size - 1)
        if task.start <= start < task.stop:
            mine.append(index)
        elif start < task.start:
            before += metadata.row_group(index).num_rows
        passed += size
    return mine, before


def _fields(file: InputFile, schema: pa.Schema, settings: Settings) -> dict[str, tuple[str, pa.DataType | None]]:
    """For each field of a row, its column and the type to turn it into.

    A score may be missing in a row, but not as a column: a file whose schema has none has been given a wrong name, or
    comes from another pipeline, and all of its documents would be without a score.
    """
    fields: dict[str, tuple[str, pa.DataType | None]] = {}
    for key in (*_LABELS, *settings.meta_keys):
        if key in schema.names:
            fields[key] = key, None
    for key in settings.score_keys:
        fields[key] = key, pa.float64()
    for key in settings.json_keys:
        fields[key] = settings.text_column or key, pa.large_string()
    for key, (column, wanted) in fields.items():
        if column not in schema.names:
            raise UserError(f"{file.name}: has no column {column!r}; it has {', '.join(schema.names)}")
        if (count := schema.names.count(column)) > 1:
            raise UserError(f"{file.name}: has {count} columns {column!r}; rename or drop all but one")
        found = schema.field(column).type
        if wanted and not (_is_text(found) if key in settings.json_keys else is_number(found)):
            kind = "text" if key in settings.json_keys else "numbers"
            remedy = "name another one"
            if kind == "text" and is_bytes(found):
                remedy += ", or mark it as text where it is UTF-8 (pyarrow: column.cast(pyarrow.string()))"
            raise UserError(f"{file.name}: column {column!r} is {in_words(found)}, not {kind}; {remedy}")
    return fields


def _is_text(kind: pa.DataType) -> bool:
    value = stored_type(kind)
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _rows(
    batch: pa.RecordBatch, fields: Mapping[str, tuple[str, pa.DataType | None]], settings: Settings, first: int
) -> Rows:
    columns = {}
    for name, (column, kind) in fields.items():
        values = batch.column(column)
        columns[name] = _values(to_doubles(values) if kind == pa.float64() else values)
    rows = Rows.empty(settings)
    for number, values in enumerate(zip(*columns.values(), strict=True), first):
        if any(value is _NOT_TEXT for value in values):
            rows.add_bad((number, None), "not text in UTF-8")
        else:
            rows.add(dict(zip(columns, values, strict=True)), settings, (number, None))
    return rows


def _values(column: pa.Array) -> list[Any]:
    """The values of a column, `_NOT_TEXT` where one is not in UTF-8."""
    try:
        return plain_values(column)
    except UnicodeDecodeError:
        return [_value(column.slice(row, 1)) for row in range(len(column))]


def _value(column: pa.Array) -> Any:
    try:
        return plain_values(column)[0]
    except UnicodeDecodeError:
        return _NOT_TEXT
