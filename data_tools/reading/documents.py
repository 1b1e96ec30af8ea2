"""Documents with all their fields, as Arrow batches: what every step of cleaning and scoring reads.

The text is the column `text`, whatever it is called in the input. Parquet columns come as they are. A field of JSON
lines becomes a column of the one type that all its values in the shard have, which for whole numbers beside others is a
double; where they have several, are lists or objects, or would be rounded, each value becomes its JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools.reading import columns
from data_tools.reading.common_schema import unify, widen
from data_tools.reading.tasks import Group, Settings, Task
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
    """A part of a file of a dataset, or several small files: the unit of work of every step.

    Attributes:
        dataset, number: place of the dataset in the run, and of the shard in the dataset; both make document ids.
        name: of the dataset.
    """

    dataset: int
    number: int
    name: str
    group: Group

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.group.tasks

    @property
    def has_columns(self) -> bool:
        """Whether its rows come from Parquet files."""
        return self.tasks[0].has_columns

    def of_one(self, number: int) -> Shard:
        """The shard with one of its tasks only, to look at the schema of that file."""
        return replace(self, group=Group.of([self.tasks[number]]))

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
            raise UserError(f"{self.group.place}: more than 2^28 rows in one task; use a smaller --task-bytes")
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
    types = _Types(shard, settings)

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
        except LeftOut as error:
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


def first_fields(shard: Shard, settings: Settings) -> Iterator[pa.Schema]:
    """The fields of each file of JSON lines of a shard but the text, in the first batch of its rows that holds any.

    Raises:
        UserError: a file cannot be read.
    """
    for task in shard.tasks:
        batch = next((lines for lines in json_rows(task, settings) if lines.rows), JsonRows())
        kinds = _kinds_of([batch], task)
        kinds.pop(settings.json_keys[0], None)
        yield pa.schema([(name, _column_type(found)) for name, found in kinds.items()])


class _Types:
    """The type of every field but the text, over all rows of a shard of JSON lines or plain text."""

    def __init__(self, shard: Shard, settings: Settings):
        key = settings.json_keys[0]
        found: dict[str, set[str]] = {}
        self._has_ids = []
        for task in shard.tasks:
            kinds = _kinds_of(json_rows(task, settings), task)
            if TEXT in kinds and key != TEXT:
                raise _two_texts(task, key) if key in kinds else _no_text(task, key, kinds)
            self._has_ids.append(DOCUMENT_ID in kinds)
            for name, values in kinds.items():
                found.setdefault(name, set()).update(values)
            _require_few(found, shard.group.place)
        found.pop(key, None)
        self._types = {name: _column_type(kinds) for name, kinds in found.items()}

    def of_task(self, number: int) -> dict[str, pa.DataType]:
        """As those of the shard; without ids where the rows of a file have none."""
        kept = dict(self._types)
        if not self._has_ids[number]:
            kept.pop(DOCUMENT_ID, None)
        return kept


def _kinds_of(batches: Iterable[JsonRows], task: Task) -> dict[str, set[str]]:
    """The kinds of the values of every field."""
    found: dict[str, set[str]] = {}
    for lines in batches:
        for _, row in lines.rows:
            for name, value in row.items():
                if value is not None:
                    found.setdefault(name, set()).add(_kind(value))
        _require_few(found, task.file.name)
    return found


def _require_few(fields: Mapping[str, object], place: str) -> None:
    if len(fields) > _MOST_FIELDS:
        raise UserError(
            f"{place}: its rows have more than {_MOST_FIELDS} different fields; put what is data into the values of a "
            "few fields"
        )


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


def group_schema(shard: Shard, settings: Settings) -> pa.Schema | None:
    """The schema that the batches of all files of a shard can be cast to; None where they have one.

    Raises:
        UserError: a file cannot be read, or a column has types in two files that have no common one.
    """
    if len(shard.tasks) == 1 or not shard.has_columns:
        return None  # the types of fields are those of the shard
    own = [next(document_batches(shard.of_one(at), settings)).documents.schema for at in range(len(shard.tasks))]
    if all(schema == own[0] for schema in own):
        return None
    common = own[0]
    for schema, task in zip(own, shard.tasks, strict=True):
        common = unify(common, schema, task.file.name)
    for schema, task in zip(own, shard.tasks, strict=True):
        if schema != common:
            common = widen(common, schema, columns.metadata(task))
    return common


def _parquet_reader(shard: Shard, settings: Settings, others: Collection[str] | None) -> _Reader:
    key = settings.text_column or settings.json_keys[0]
    # A second column 'text' is found too.
    others = None if others is None else {*others, DOCUMENT_ID, TEXT}

    def read(_: int, task: Task, first: int) -> Iterator[Batch]:
        row = 0
        for table in columns.record_batches(task, key, others):
            if key != TEXT and TEXT in table.schema.names:
                raise _two_texts(task, key)
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
        except LeftOut as error:
            batch.left_out.append(str(error))
        else:
            continue
        keep[number] = False
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


def _no_text(task: Task, key: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{task.file.name}: no row has the field {key!r}; there are {', '.join(names)}; name the one with the "
        "text as --json-key"
    )


def _two_texts(task: Task, key: str) -> UserError:
    return UserError(
        f"{task.file.name}: has a field 'text' beside {key!r}, which holds the text and becomes 'text' in the "
        "output; rename or drop one of them"
    )
