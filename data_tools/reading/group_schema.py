"""The one schema of a shard of several files whose columns differ."""

from __future__ import annotations

import pyarrow as pa

from data_tools.reading import columns
from data_tools.reading.common_schema import unify, widen
from data_tools.reading.documents import document_batches
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings


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
            with columns.open_table(task.file) as parquet:
                common = widen(common, schema, parquet)
    return common
