"""One schema for tables of documents that differ: which columns it has, of which types, and tables with these columns.

A column that a table lacks is null. Numbers of several types become the widest; texts beside numbers, and whole numbers
that the widest cannot hold as they are, become the numbers' JSON text.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.reading.columns import all_rows
from data_tools.reading.values import as_text
from megatron_kaiyuan.errors import UserError

# Bits of a floating type's whole numbers that are all exact.
_MANTISSAS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}


def unify(first: pa.Schema, second: pa.Schema, name: str) -> pa.Schema:
    """The columns of both, in the order in which they come first.

    Args:
        name: of the file of `second`, for the message.

    Raises:
        UserError: a column has types that have no common one.
    """
    fields = {field.name: field for field in first}
    for field in second:
        known = fields.get(field.name)
        fields[field.name] = field if known is None else known.with_type(_common(known, field, name))
    return pa.schema(list(fields.values()))


def widen(schema: pa.Schema, own: pa.Schema, parquet: pq.ParquetFile) -> pa.Schema:
    """The schema with text for each column whose type would round a whole number of a file, or cannot hold it.

    Args:
        own: the columns of the file that are to be cast.
        parquet: that file.
    """
    for field in filter(lambda field: pa.types.is_integer(field.type), own):
        common = schema.field(field.name)
        if common.type != field.type and not _fits(parquet, field.name, common.type):
            schema = schema.set(schema.get_field_index(field.name), common.with_type(pa.string()))
    return schema


def cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with the columns of a schema that `unify` and `widen` have made for them."""
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(len(batch), field.type))
        elif pa.types.is_string(field.type) and not _is_text(batch.column(at).type):
            columns.append(pa.array([as_text(value) for value in batch.column(at).to_pylist()], pa.string()))
        else:
            columns.append(batch.column(at).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _common(first: pa.Field, second: pa.Field, name: str) -> pa.DataType:
    if first.type == second.type or pa.types.is_null(second.type):
        return first.type
    if pa.types.is_null(first.type):
        return second.type
    try:
        return pa.unify_schemas([pa.schema([first]), pa.schema([second])], promote_options="permissive").field(0).type
    except pa.ArrowTypeError as error:
        if _is_scalar(first.type) and _is_scalar(second.type):
            return pa.string()
        raise UserError(
            f"{name}: column {first.name!r} is {second.type}, and {first.type} in another file of the dataset; make "
            "them one type, or give the files two names of datasets"
        ) from error


def _fits(parquet: pq.ParquetFile, name: str, kind: pa.DataType) -> bool:
    """Whether a type holds all whole numbers of a column as they are.

    The column is read. The footer's statistics would say it too, but a damaged one ends the process (`columns.py`).
    """
    if pa.types.is_integer(kind):
        held = _whole_numbers(kind)
    elif pa.types.is_floating(kind):
        largest = 1 << _MANTISSAS[kind]
        held = range(-largest, largest + 1)
    else:
        return True
    if name not in parquet.schema_arrow.names:
        return True
    for batch in all_rows(parquet, range(parquet.metadata.num_row_groups), [name]):
        found = pc.min_max(batch.column(batch.schema.get_field_index(name)))
        if found["min"].is_valid and not (found["min"].as_py() in held and found["max"].as_py() in held):
            return False
    return True


def _whole_numbers(kind: pa.DataType) -> range:
    bits = kind.bit_width
    return range(0, 1 << bits) if pa.types.is_unsigned_integer(kind) else range(-(1 << bits - 1), 1 << bits - 1)


def _is_scalar(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
