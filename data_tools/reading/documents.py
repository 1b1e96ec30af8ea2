"""Documents with all their fields, as Arrow batches: what every step of cleaning and scoring reads.

The text is the column `text`, whatever it is called in the input. Parquet columns come as they are. A field of JSON
lines becomes a column of the one type that all its values in the shard have, which for whole numbers beside others is a
double; where they have several, are lists or objects, or would be rounded, each value becomes its JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools.reading import columns
from data_tools.reading.field_types import FieldTypes, two_texts
from data_tools.reading.shard import DOCUMENT_ID, TEXT, Shard
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import BadPlace, JsonRows, check_row, json_rows
from data_tools.reading.values import BadRow, LeftOutRow, as_text
from megatron_kaiyuan.errors import UserError


@dataclass
class Batch:
    """Sound documents, and what became of the other rows.

    Attributes:
        documents: `kaiyuan_id` (uint64), `text` (large_string), then the other columns, the same in each batch.
        bad, left_out: rows that are no documents: where, and by reason.
        rows: that were read, whatever became of them.
        places: rows that were counted for ids: also blank lines.
        task: number of the shard's task that the rows are of; their places count from its beginning.
        first: place of the task's first row in the shard, as ids count.
    """

    documents: pa.RecordBatch
    bad: list[BadPlace] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: int = 0
    places: int = 0
    task: int = 0
    first: int = 0


def document_batches(shard: Shard, settings: Settings, others: Collection[str] | None = None) -> Iterator[Batch]:
    """The documents of a shard, file by file. At least one batch of each file comes, so that its columns are known.

    Args:
        settings: `json_keys` holds the one field with the text.
        others: columns that are needed beside text and id, where they are there; None: all. Others of a Parquet file
            are not read.

    Raises:
        UserError: the file cannot be read, lacks the text's column, or has another column `text`.
    """
    read = _parquet_reader(shard, settings, others) if shard.has_columns else _json_reader(shard, settings)
    first = 0
    for number, task in enumerate(shard.tasks):
        places = 0
        for batch in read(number, task, first):
            batch.task, batch.first = number, first
            places += batch.places
            yield batch
        first += places


# Gives the batches of a shard's task, of which the number and the place of its first row are given.
_Reader = Callable[[int, Task, int], Iterator[Batch]]


def _json_reader(shard: Shard, settings: Settings) -> _Reader:
    types = FieldTypes(shard, settings)

    def read(number: int, task: Task, first: int) -> Iterator[Batch]:
        kinds = types.of_task(number)
        for lines in json_rows(task, settings):
            yield _json_batch(lines, shard, task, settings, kinds, first)

    return read


def _json_batch(
    lines: JsonRows, shard: Shard, task: Task, settings: Settings, kinds: Mapping[str, pa.DataType], first: int
) -> Batch:
    texts: list[str] = []
    numbers: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in kinds}
    rows = len(lines.rows) + len(lines.bad)
    batch = Batch(pa.record_batch([]), list(lines.bad), [], rows, lines.count)
    for place, row in lines.rows:
        try:
            check_row(row, settings)
            fields = {name: _in_column(row.get(name), name, kind) for name, kind in kinds.items()}
        except BadRow as error:
            batch.bad.append(BadPlace(*place, str(error)))
        except LeftOutRow as error:
            batch.left_out.append(str(error))
        else:
            texts.append(row[settings.json_keys[0]])
            numbers.append(first + place[0] - 1)
            for name, value in fields.items():
                values[name].append(value)
    arrays = {DOCUMENT_ID: shard.document_ids(numbers), TEXT: pa.array(texts, pa.large_string())}
    arrays |= {name: pa.array(values[name], kind) for name, kind in kinds.items()}
    if DOCUMENT_ID in kinds:
        arrays[DOCUMENT_ID] = _earlier_ids(arrays[DOCUMENT_ID], task)
    batch.documents = pa.RecordBatch.from_pydict(arrays)
    batch.bad.sort()
    return batch


def _in_column(value: Any, name: str, kind: pa.DataType) -> Any:
    return as_text(value, name) if kind == pa.string() else value


def _parquet_reader(shard: Shard, settings: Settings, others: Collection[str] | None) -> _Reader:
    key = settings.text_column or settings.json_keys[0]
    # A second column 'text' is found too.
    others = None if others is None else {*others, DOCUMENT_ID, TEXT}

    def read(_: int, task: Task, first: int) -> Iterator[Batch]:
        row = 0
        for table in columns.record_batches(task, key, others):
            if key != TEXT and TEXT in table.schema.names:
                raise two_texts(task, key)
            yield _parquet_batch(shard, task, settings, table, key, row, first)
            row += len(table)

    return read


def _parquet_batch(
    shard: Shard, task: Task, settings: Settings, table: pa.RecordBatch, key: str, row: int, first: int
) -> Batch:
    """Rows of a task.

    Args:
        row: place of the table's first row in the task.
        first: place of the task's first row in the shard.
    """
    batch = Batch(table, rows=len(table), places=len(table))
    keep: NDArray[np.bool_] = np.ones(len(table), bool)
    texts = table.column(key)
    for number in () if _all_sound(texts, settings) else range(len(table)):
        place = (row + number + 1, None)
        try:
            check_row({settings.json_keys[0]: texts[number].as_py()}, settings)
        except UnicodeDecodeError:
            batch.bad.append(BadPlace(*place, "not text in UTF-8"))
        except BadRow as error:
            batch.bad.append(BadPlace(*place, str(error)))
        except LeftOutRow as error:
            batch.left_out.append(str(error))
        else:
            continue
        keep[number] = False
    for number, name in _odd_rows(table, key, task).items():
        if keep[number]:
            batch.bad.append(BadPlace(row + number + 1, None, f"column {name!r} is not text in UTF-8"))
            keep[number] = False
    batch.bad.sort(key=lambda place: place.row)
    numbers = (np.flatnonzero(keep) + first + row).tolist()
    kept = table if keep.all() else table.filter(pa.array(keep))
    arrays = {DOCUMENT_ID: shard.document_ids(numbers), TEXT: kept.column(key).cast(pa.large_string())}
    if DOCUMENT_ID in kept.schema.names:
        arrays[DOCUMENT_ID] = _earlier_ids(kept.column(DOCUMENT_ID), task)
    arrays |= {name: kept.column(name) for name in kept.schema.names if name not in (key, DOCUMENT_ID)}
    batch.documents = pa.RecordBatch.from_pydict(arrays)
    return batch


def _earlier_ids(ids: pa.Array, task: Task) -> pa.Array:
    """The ids that an earlier command gave.

    Raises:
        UserError: the column is something else.
    """
    if pa.types.is_integer(ids.type) and not ids.null_count and (not len(ids) or pc.min(ids).as_py() >= 0):
        return ids.cast(pa.uint64())
    raise UserError(f"{task.file.name}: column {DOCUMENT_ID!r} holds no ids that a command gave; rename or drop it")


def _odd_rows(table: pa.RecordBatch, key: str, task: Task) -> dict[int, str]:
    """Rows whose value in another column than the text's is not UTF-8, as a damaged file has them, with the column.

    Raises:
        UserError: a column is damaged in another way.
    """
    found: dict[int, str] = {}
    for name in table.schema.names:
        column = table.column(name)
        if name == key or _is_valid(column):
            continue
        odd = [number for number in range(len(column)) if not _is_text(column[number])]
        if not odd:
            raise UserError(f"{task.file.name}: column {name!r} is damaged; copy the file again")
        found = {**dict.fromkeys(odd, name), **found}
    return found


def _is_text(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _all_sound(texts: pa.Array, settings: Settings) -> bool:
    """Whether no row needs a look of its own; checking each takes longer than reading it."""
    if texts.null_count or settings.max_characters or pa.types.is_dictionary(texts.type):
        return False
    if not _is_valid(texts):
        return False
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    return not 0 < settings.max_row_bytes < longest
