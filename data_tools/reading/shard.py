"""A shard of a dataset, the unit of work of every step, and the ids of its documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data_tools.reading.tasks import Task, TaskGroup
from megatron_kaiyuan.errors import UserError

# Columns that every batch of documents has.
TEXT, DOCUMENT_ID = "text", "kaiyuan_id"
# (dataset, shard, row) in one number: 16, 20 and 28 bits.
_SHARD_BITS, _ROW_BITS = 20, 28
# For options that count documents: more than there are anywhere.
MOST_DOCUMENTS = 10**15


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
    group: TaskGroup

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.group.tasks

    @property
    def has_columns(self) -> bool:
        """Whether its rows come from Parquet files."""
        return self.tasks[0].has_columns

    def of_one(self, number: int) -> Shard:
        """The shard with one of its tasks only, to look at the schema of that file."""
        return replace(self, group=TaskGroup.of([self.tasks[number]]))

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
