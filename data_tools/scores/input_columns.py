"""Which columns a dataset of documents has, before the work: a look at some rows, not at all of them.

Shards differ: a field of JSON lines is no column of a shard in which no row has it, and an empty file has no fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from data_tools.reading.documents import document_batches
from data_tools.reading.field_types import first_fields
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings
from data_tools.steps.datasets import Dataset

# Shards of JSON lines that are read whole where the first rows of no shard have a field.
_READ_WHOLE = 8


def find_columns(dataset: Dataset, settings: Settings, needed: Collection[str]) -> pa.RecordBatch:
    """The columns of a dataset, without rows: of files in order until all that are `needed` are found.

    First the schemas of Parquet and the first rows of JSON lines of all files are looked at, then all rows of the first
    shards of JSON lines: a mistyped name must not cost a pass over the whole dataset.

    Raises:
        UserError: a file that is looked at cannot be read.
    """
    found = next(document_batches(dataset.shards[0].of_one(0), settings)).documents.slice(0, 0)
    for schema in _schemas(dataset, settings):
        if set(needed) <= set(found.schema.names):
            break
        for field in schema:
            if field.name not in found.schema.names:
                found = found.append_column(field, pa.nulls(0, field.type))
    return found


def _schemas(dataset: Dataset, settings: Settings) -> Iterator[pa.Schema]:
    for shard in dataset.shards:
        if shard.has_columns:
            yield from (_all_fields(shard.of_one(number), settings) for number in range(len(shard.tasks)))
        else:
            yield from first_fields(shard, settings)
    for shard in [shard for shard in dataset.shards if not shard.has_columns][:_READ_WHOLE]:
        yield _all_fields(shard, settings)


def _all_fields(shard: Shard, settings: Settings) -> pa.Schema:
    return next(document_batches(shard, settings)).documents.schema
