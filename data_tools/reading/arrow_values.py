"""Values of Parquet columns in the terms of JSON: None, bools, numbers, texts, lists and objects.

Whatever Arrow can hold comes out, the same on every machine: Python's dates end with the year 9999, its times have no
nanoseconds, and zones need a database. Dates and times are text as ISO 8601 writes them, with a blank before the time;
time stamps with a zone are given in UTC. Decimals, durations and bytes are text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

_SECONDS_A_DAY = 86_400
_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def plain_values(column: pa.Array) -> list[Any]:
    """One value a row.

    Raises:
        UnicodeDecodeError: what Parquet calls text is not UTF-8.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain_values(column.storage)
    if types.is_dictionary(kind):
        return _decoded(column)
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind) or types.is_duration(kind):
        return _times(column)
    if types.is_decimal(kind):
        return _each(column, lambda value: format(value, "f"))
    if is_bytes(kind):
        # Old writers mark no column as text.
        return _each(column, lambda value: value.decode("utf-8", "backslashreplace"))
    if types.is_struct(kind):
        return _objects(column)
    if types.is_map(kind):
        return [None if row.values is None else _pairs(row.values) for row in column]
    if hasattr(kind, "value_type"):
        return [None if row.values is None else plain_values(row.values) for row in column]
    return column.to_pylist()  # type: ignore[no-any-return]


def is_number(kind: pa.DataType) -> bool:
    """Whether a column can be scores; one of type null holds missing scores only."""
    value = stored_type(kind)
    kinds = types.is_integer, types.is_floating, types.is_decimal, types.is_null
    return any(is_kind(value) for is_kind in kinds)


def to_doubles(numbers: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Numbers as float64; those that it cannot hold are rounded, as numbers of JSON are."""
    kind = stored_type(numbers.type)
    return (numbers.cast(kind) if kind != numbers.type else numbers).cast(pa.float64(), safe=False)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, also where each is stored once only."""
    return kind.value_type if types.is_dictionary(kind) else kind


def in_words(kind: pa.DataType) -> str:
    """A type of a column as messages name it: what a user sees in the data, not how Arrow stores it."""
    value = stored_type(kind)
    if types.is_boolean(value):
        return "true or false"
    if types.is_date(value):
        return "dates"  # Parquet has one type for both of Arrow's
    if types.is_string(value) or types.is_large_string(value):
        return "text"
    if is_bytes(value):
        return "binary (bytes that no schema marks as text)"
    return str(value)


def _each(column: pa.Array, convert: Callable[[Any], str]) -> list[str | None]:
    return [None if value is None else convert(value) for value in column.to_pylist()]


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes that no schema marks as text."""
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or kind == pa.binary_view()
    )


def _decoded(column: pa.Array) -> list[Any]:
    values = plain_values(column.dictionary)
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _pairs(entries: pa.StructArray) -> list[list[Any]]:
    return [list(pair) for pair in zip(*map(plain_values, entries.flatten()), strict=True)]


def _objects(column: pa.Array) -> list[Any]:
    """Objects; lists of pairs where two fields have one name."""
    names = [field.name for field in column.type]
    rows: Iterable[tuple[Any, ...]] = zip(*map(plain_values, column.flatten()), strict=True)
    make: Callable[[Any], Any] = dict if len(set(names)) == len(names) else list
    valid = column.is_valid().to_pylist()
    return [make(zip(names, row, strict=True)) if there else None for row, there in zip(rows, valid, strict=True)]


def _times(column: pa.Array) -> list[str | None]:
    kind = column.type
    unit = "D" if kind == pa.date32() else "ms" if kind == pa.date64() else kind.unit
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    numbers = column.view(width).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if types.is_duration(kind):
        found = [f"{number} {unit}" for number in numbers.tolist()]
    elif types.is_date(kind):
        found = np.datetime_as_string(numbers.view(f"datetime64[{unit}]"), unit="D").tolist()
    else:
        zone = "+00:00" if types.is_timestamp(kind) and kind.tz is not None else ""
        found = [stamp + zone for stamp in _time_stamps(numbers, _A_SECOND[unit])]
        if types.is_time(kind):
            found = _times_of_day(found, numbers.tolist(), unit)
    return [text if there else None for text, there in zip(found, column.is_valid().to_pylist(), strict=True)]


def _times_of_day(stamps: list[str], numbers: list[int], unit: str) -> list[str]:
    """Times of day from numbers within one day; other numbers are not times of day and stay as they are."""
    end = _SECONDS_A_DAY * _A_SECOND[unit]
    return [
        stamp.partition(" ")[2] if 0 <= number < end else f"{number} {unit}"
        for stamp, number in zip(stamps, numbers, strict=True)
    ]


def _time_stamps(numbers: NDArray[np.int64], second: int) -> list[str]:
    """As Python writes them: no fraction of zero, else microseconds; nanoseconds only where there are some."""
    # NumPy takes the least number of all for no time. As a number of seconds it is none that anybody means.
    whole = np.datetime_as_string((numbers // second).view("datetime64[s]")).tolist()
    rest = (numbers % second * (_A_SECOND["ns"] // second)).tolist()
    return [day.replace("T", " ") + _fraction(nanoseconds) for day, nanoseconds in zip(whole, rest, strict=True)]


def _fraction(nanoseconds: int) -> str:
    if not nanoseconds:
        return ""
    return f".{nanoseconds:09d}" if nanoseconds % 1000 else f".{nanoseconds // 1000:06d}"
