"""Documents with all their fields, as Arrow batches: what every step of cleaning and scoring reads.

The text is the column `text`, whatever it is called in the input. Parquet columns come as they are. A field of JSON
lines becomes a column of the one type that all its values in the task have, which for whole numbers beside others is a
double; where they have several, are lists or objects, or would be rounded, each value becomes its JSON text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools.reading import columns
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import BadPlace, JsonRows, check_row, json_rows
from data_tools.reading.values import BadRow, LeftOut, as_text
from megatron_kaiyuan.errors import UserError

TEXT, DOCUMENT_ID = "text", "kaiyuan_id"
# (dataset, shard, row) in one number: 16, 20 and 28 bits.
_SHARD_BITS, _ROW_BITS = 20, 28
_MOST_FIELDS = 1000
# For options that count documents: more than there are anywhere.
MOST_DOCUMENTS = 10**15
_INT64 = range(-(1 << 63), 1 << 63)
# Whole numbers that a double holds, each and all between them.
_EXACT = range(-(1 << 53), (1 << 53) + 1)


@dataclass(frozen=True)
class Shard:
    """A task of a dataset: the unit of work of every step.

    Attributes:
        dataset, number: place of the dataset in the run, and of the shard in the dataset; both make document ids.
        name: of the dataset.
    """

    dataset: int
    number: int
    name: str
    task: Task

    def __post_init__(self) -> None:
        if self.number >> _SHARD_BITS or self.dataset >> 16:
            raise UserError(
                f"{self.name or 'the input'}: more than 2^20 shards, or 2^16 datasets; name fewer or larger files, or "
                "a larger --task-bytes"
            )

    def document_ids(self, rows: Sequence[int]) -> pa.Array:
        """uint64 ids of rows, counted in the shard from 0."""
        base = (self.dataset << (_SHARD_BITS + _ROW_BITS)) | (self.number << _ROW_BITS)
        if rows and rows[-1] >> _ROW_BITS:
            raise UserError(f"{self.task.file.name}: more than 2^28 rows in one task; use a smaller --task-bytes")
        return pa.array(np.asarray(rows, np.uint64) + np.uint64(base))


def parse_document_id(number: int) -> tuple[int, int, int]:
    """(dataset, shard, row) of a document id."""
    return (
        number >> (_SHARD_BITS + _ROW_BITS),
        (number >> _ROW_BITS) & ((1 << _SHARD_BITS) - 1),
        number & ((1 << _ROW_BITS) - 1),
    )


@dataclass
class Batch:
    """Sound documents, and what became of the other rows.

    Attributes:
        documents: `kaiyuan_id` (uint64), `text` (large_string), then the other columns, the same in each batch.
        bad, left_out: rows that are no documents: where, and by reason.
        rows: that were read, whatever became of them.
    """

    documents: pa.RecordBatch
    bad: list[BadPlace] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: int = 0


def document_batches(shard: Shard, settings: Settings, others: Collection[str] | None = None) -> Iterator[Batch]:
    """The documents of a shard. At least one batch comes, so that its columns are known.

    Args:
        settings: `json_keys` holds the one field with the text.
        others: columns that are needed beside text and id, where they are there; None: all. Others of a Parquet file
            are not read.

    Raises:
        UserError: the file cannot be read, lacks the text's column, or has another column `text`.
    """
    if shard.task.file.format == "parquet":
        yield from _parquet_batches(shard, settings, others)
    else:
        yield from _json_batches(shard, settings)


def _json_batches(shard: Shard, settings: Settings) -> Iterator[Batch]:
    key = settings.json_keys[0]
    kinds = _field_types(shard, settings)
    if TEXT in kinds and key != TEXT:
        raise _two_texts(shard, key) if key in kinds else _no_text(shard, key, kinds)
    kinds.pop(key, None)
    for lines in json_rows(shard.task, settings):
        yield _json_batch(lines, shard, settings, kinds)


def _json_batch(lines: JsonRows, shard: Shard, settings: Settings, kinds: Mapping[str, pa.DataType]) -> Batch:
    texts: list[str] = []
    numbers: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in kinds}
    batch = Batch(pa.record_batch([]), list(lines.bad), [], len(lines.rows) + len(lines.bad))
    for place, row in lines.rows:
        try:
            check_row(row, settings)
            fields = {name: _in_column(row.get(name), name, kind) for name, kind in kinds.items()}
        except BadRow as error:
            batch.bad.append(BadPlace(*place, str(error)))
        except LeftOut as error:
            batch.left_out.append(str(error))
        else:
            texts.append(row[settings.json_keys[0]])
            numbers.append(place[0] - 1)
            for name, value in fields.items():
                values[name].append(value)
    arrays = {DOCUMENT_ID: shard.document_ids(numbers), TEXT: pa.array(texts, pa.large_string())}
    arrays |= {name: pa.array(values[name], kind) for name, kind in kinds.items()}
    if DOCUMENT_ID in kinds:
        arrays[DOCUMENT_ID] = _earlier_ids(arrays[DOCUMENT_ID], shard)
    batch.documents = pa.RecordBatch.from_pydict(arrays)
    batch.bad.sort()
    return batch


def _in_column(value: Any, name: str, kind: pa.DataType) -> Any:
    return as_text(value, name) if kind == pa.string() else value


def first_fields(shard: Shard, settings: Settings) -> pa.Schema:
    """The fields of a shard of JSON lines but the text, in the first batch of its rows that holds any.

    Raises:
        UserError: the file cannot be read.
    """
    batch = next((lines for lines in json_rows(shard.task, settings) if lines.rows), JsonRows())
    kinds = _types_of([batch], shard, settings)
    kinds.pop(settings.json_keys[0], None)
    return pa.schema(list(kinds.items()))


def _field_types(shard: Shard, settings: Settings) -> dict[str, pa.DataType]:
    """The type of every field but the text, over all rows of the task."""
    return _types_of(json_rows(shard.task, settings), shard, settings)


def _types_of(batches: Iterable[JsonRows], shard: Shard, settings: Settings) -> dict[str, pa.DataType]:
    found: dict[str, set[str]] = {}
    for lines in batches:
        for _, row in lines.rows:
            for name, value in row.items():
                if value is not None:
                    found.setdefault(name, set()).add(_kind(value))
        if len(found) > _MOST_FIELDS:
            raise UserError(
                f"{shard.task.file.name}: its rows have more than {_MOST_FIELDS} different fields; put what is data "
                "into the values of a few fields"
            )
    return {name: _column_type(kinds) for name, kinds in found.items()}


def _kind(value: Any) -> str:
    """ "bool", "int" (a double can hold it), "int64", "float" or "other"."""
    kind = type(value)
    if kind is int:
        return "int" if value in _EXACT else "int64" if value in _INT64 else "other"
    return kind.__name__ if kind in (bool, float) else "other"


def _column_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"int", "int64"}:
        return pa.int64()
    return pa.float64() if kinds <= {"int", "float"} else pa.string()


def _parquet_batches(shard: Shard, settings: Settings, others: Collection[str] | None) -> Iterator[Batch]:
    key = settings.text_column or settings.json_keys[0]
    row = 0
    # A second column 'text' is found too.
    others = None if others is None else {*others, DOCUMENT_ID, TEXT}
    for table in columns.record_batches(shard.task, key, others):
        if key != TEXT and TEXT in table.schema.names:
            raise _two_texts(shard, key)
        yield _parquet_batch(shard, settings, table, key, row)
        row += len(table)


def _parquet_batch(shard: Shard, settings: Settings, table: pa.RecordBatch, key: str, first: int) -> Batch:
    batch = Batch(table, rows=len(table))
    keep: NDArray[np.bool_] = np.ones(len(table), bool)
    texts = table.column(key)
    for number in () if _all_sound(texts, settings) else range(len(table)):
        place = (first + number + 1, None)
        try:
            check_row({settings.json_keys[0]: texts[number].as_py()}, settings)
        except UnicodeDecodeError:
            batch.bad.append(BadPlace(*place, "not text in UTF-8"))
        except BadRow as error:
            batch.bad.append(BadPlace(*place, str(error)))
        except LeftOut as error:
            batch.left_out.append(str(error))
        else:
            continue
        keep[number] = False
    numbers = (np.flatnonzero(keep) + first).tolist()
    kept = table if keep.all() else table.filter(pa.array(keep))
    arrays = {DOCUMENT_ID: shard.document_ids(numbers), TEXT: kept.column(key).cast(pa.large_string())}
    if DOCUMENT_ID in kept.schema.names:
        arrays[DOCUMENT_ID] = _earlier_ids(kept.column(DOCUMENT_ID), shard)
    arrays |= {name: kept.column(name) for name in kept.schema.names if name not in (key, DOCUMENT_ID)}
    batch.documents = pa.RecordBatch.from_pydict(arrays)
    return batch


def _earlier_ids(ids: pa.Array, shard: Shard) -> pa.Array:
    """The ids that an earlier command gave.

    Raises:
        UserError: the column is something else.
    """
    if pa.types.is_integer(ids.type) and not ids.null_count and (not len(ids) or pc.min(ids).as_py() >= 0):
        return ids.cast(pa.uint64())
    raise UserError(
        f"{shard.task.file.name}: column {DOCUMENT_ID!r} holds no ids that a command gave; rename or drop it"
    )


def _all_sound(texts: pa.Array, settings: Settings) -> bool:
    """Whether no row needs a look of its own; checking each takes longer than reading it."""
    if texts.null_count or settings.max_characters or pa.types.is_dictionary(texts.type):
        return False
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    return not 0 < settings.max_row_bytes < longest


def _no_text(shard: Shard, key: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{shard.task.file.name}: no row has the field {key!r}; there are {', '.join(names)}; name the one with the "
        "text as --json-key"
    )


def _two_texts(shard: Shard, key: str) -> UserError:
    return UserError(
        f"{shard.task.file.name}: has a field 'text' beside {key!r}, which holds the text and becomes 'text' in the "
        "output; rename or drop one of them"
    )
