"""The fields of rows of JSON lines, and the one type of column that holds all values of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from data_tools.reading.shard import DOCUMENT_ID, TEXT, Shard
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import JsonRows, json_rows
from megatron_kaiyuan.errors import UserError

_MOST_FIELDS = 1000
_INT64 = range(-(1 << 63), 1 << 63)
# Whole numbers that a double holds, each and all between them.
_EXACT = range(-(1 << 53), (1 << 53) + 1)


class FieldTypes:
    """The column type of every field but the text, over all rows of a shard of JSON lines or plain text.

    Raises:
        UserError: a file cannot be read, has too many fields, or has a field `text` that does not hold the text.
    """

    def __init__(self, shard: Shard, settings: Settings):
        key = settings.json_keys[0]
        found: dict[str, set[str]] = {}
        self._has_ids = []
        for task in shard.tasks:
            kinds = _kinds_of(json_rows(task, settings), task)
            if TEXT in kinds and key != TEXT:
                raise two_texts(task, key) if key in kinds else _no_text(task, key, kinds)
            self._has_ids.append(DOCUMENT_ID in kinds)
            for name, values in kinds.items():
                found.setdefault(name, set()).update(values)
            _require_few(found, shard.group.place)
        found.pop(key, None)
        self._types = {name: _column_type(kinds) for name, kinds in found.items()}

    def of_task(self, number: int) -> dict[str, pa.DataType]:
        """Return the types of the shard, without ids where the rows of this file have none."""
        kept = dict(self._types)
        if not self._has_ids[number]:
            kept.pop(DOCUMENT_ID, None)
        return kept


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


def _kinds_of(batches: Iterable[JsonRows], task: Task) -> dict[str, set[str]]:
    """Return the kinds of the values of every field, as `_kind` names them."""
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
    """Return the type that holds values of all these kinds; a string, for their JSON text, where no other does."""
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"int", "int64"}:
        return pa.int64()
    return pa.float64() if kinds <= {"int", "float"} else pa.string()


def _no_text(task: Task, key: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"{task.file.name}: no row has the field {key!r}; there are {', '.join(names)}; name the one with the "
        "text as --json-key"
    )


def two_texts(task: Task, key: str) -> UserError:
    """Return the error about a column `text` that is not the column `key` with the text."""
    return UserError(
        f"{task.file.name}: has a field 'text' beside {key!r}, which holds the text and becomes 'text' in the "
        "output; rename or drop one of them"
    )
