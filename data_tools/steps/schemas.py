"""One schema for all shards of a dataset, so that whoever opens its folder finds every column in every file.

Shards come from different files: a field of JSON lines is no column where no row has it, and Parquet files differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.engines.stage import Engine, Record, Stage, Target
from data_tools.reading.documents import Shard
from data_tools.reading.values import as_text
from data_tools.steps.folder import Workplace, link
from data_tools.steps.shards import ShardFile
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

Schemas = dict[tuple[int, str], pa.Schema]
# Bits of a floating type's whole numbers that are all exact.
_MANTISSAS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}


def one_schema(place: Workplace, stage: Stage, records: Sequence[Record], engine: Engine) -> tuple[Stage, list[Record]]:
    """The stage and records after one in which shards of a dataset that differ are written again; or the same.

    A column that a shard lacks is null there. Numbers of several types become the widest; texts beside numbers, and
    whole numbers that the widest cannot hold as they are, become the numbers' JSON text.

    Raises:
        UserError: a column has types in two files that have no common one.
    """
    schemas: Schemas = {}
    differ = False
    for shard, name, record in zip(stage.tasks, stage.names, records, strict=True):
        for suffix in record["checksums"]:
            found = pq.read_schema(stage.folder / f"{name}{suffix}").remove_metadata()
            key = (shard.dataset, suffix)
            differ |= key in schemas and schemas[key] != found
            schemas[key] = _unify(schemas[key], found, shard) if key in schemas else found
    if not differ:
        return stage, list(records)
    _widen(schemas, stage, records)
    paths = [stage.folder / name for name in stage.names]
    tasks = [_Task(*task) for task in zip(stage.tasks, paths, records, strict=True)]
    again = replace(stage, title="columns", folder=place.folder / "columns", do=_Cast(schemas), tasks=tasks)
    return replace(again, tasks=stage.tasks), engine.run(again)


def _unify(first: pa.Schema, second: pa.Schema, shard: Shard) -> pa.Schema:
    fields = {field.name: field for field in first}
    for field in second:
        known = fields.get(field.name)
        fields[field.name] = field if known is None else known.with_type(_common(known, field, shard))
    return pa.schema(list(fields.values()))


def _common(first: pa.Field, second: pa.Field, shard: Shard) -> pa.DataType:
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
            f"{shard.task.file.name}: column {first.name!r} is {second.type}, and {first.type} in another file of the "
            "dataset; make them one type, or give the files two names of datasets"
        ) from error


def _widen(schemas: Schemas, stage: Stage, records: Sequence[Record]) -> None:
    """Make a column text where its type would round a whole number of a shard, or cannot hold it."""
    for shard, name, record in zip(stage.tasks, stage.names, records, strict=True):
        for suffix in record["checksums"]:
            schema = schemas[shard.dataset, suffix]
            with pq.ParquetFile(stage.folder / f"{name}{suffix}") as parquet:
                for field in filter(lambda field: pa.types.is_integer(field.type), parquet.schema_arrow):
                    common = schema.field(field.name)
                    if common.type != field.type and not _fits(parquet.metadata, field.name, common.type):
                        at = schema.get_field_index(field.name)
                        schema = schema.set(at, common.with_type(pa.string()))
            schemas[shard.dataset, suffix] = schema


def _fits(metadata: Any, name: str, kind: pa.DataType) -> bool:
    """Whether a type holds all whole numbers of a column as they are."""
    if pa.types.is_integer(kind):
        held = _whole_numbers(kind)
    elif pa.types.is_floating(kind):
        largest = 1 << _MANTISSAS[kind]
        held = range(-largest, largest + 1)
    else:
        return True
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == name)
        found = column.statistics
        if found is not None and found.has_min_max and not (found.min in held and found.max in held):
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


@dataclass(frozen=True)
class _Task:
    shard: Shard
    path: Path
    record: Record


@dataclass(frozen=True)
class _Cast:
    """The work of the stage: a shard's files with the columns of their dataset."""

    schemas: Schemas

    def __call__(self, task: _Task, target: Target) -> Record:
        checksums = {}
        for suffix, known in task.record["checksums"].items():
            source = task.path.with_name(f"{task.path.name}{suffix}")
            schema = self.schemas[task.shard.dataset, suffix]
            if pq.read_schema(source).remove_metadata() == schema:
                with target.file(suffix) as path:
                    link(source, path)
                checksums[suffix] = known
                continue
            with ShardFile(target, suffix) as file, pq.ParquetFile(source) as parquet:
                file.write(pa.RecordBatch.from_pylist([], schema=schema))
                for batch in parquet.iter_batches():
                    file.write(_cast(batch, schema))
            checksums[suffix] = checksum(target.path(suffix))
        return {**task.record, "checksums": checksums}


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
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


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
