"""One schema for all shards of a dataset, so that whoever opens its folder finds every column in every file.

Shards come from different files: a field of JSON lines is no column where no row has it, and Parquet files differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.engines.stage import Engine, Record, Stage, Target
from data_tools.reading.common_schema import cast, unify, widen
from data_tools.reading.shard import Shard
from data_tools.steps.folder import Workplace, link
from data_tools.steps.shards import ShardFile
from megatron_kaiyuan.files import checksum

Schemas = dict[tuple[int, str], pa.Schema]


def one_schema(place: Workplace, stage: Stage, records: Sequence[Record], engine: Engine) -> tuple[Stage, list[Record]]:
    """The stage and records after one in which shards of a dataset that differ are written again; or the same.

    The schema is as `common_schema` says.

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
            schemas[key] = unify(schemas[key], found, shard.group.place) if key in schemas else found
    if not differ:
        return stage, list(records)
    _widen(schemas, stage, records)
    paths = [stage.folder / name for name in stage.names]
    tasks = [_Task(*task) for task in zip(stage.tasks, paths, records, strict=True)]
    again = replace(stage, title="columns", folder=place.folder / "columns", do=_Cast(schemas), tasks=tasks)
    return replace(again, tasks=stage.tasks), engine.run(again)


def _widen(schemas: Schemas, stage: Stage, records: Sequence[Record]) -> None:
    for shard, name, record in zip(stage.tasks, stage.names, records, strict=True):
        for suffix in record["checksums"]:
            key = shard.dataset, suffix
            with pq.ParquetFile(stage.folder / f"{name}{suffix}") as parquet:
                schemas[key] = widen(schemas[key], parquet.schema_arrow, parquet)


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
                    file.write(cast(batch, schema))
            checksums[suffix] = checksum(target.path(suffix))
        return {**task.record, "checksums": checksums}
