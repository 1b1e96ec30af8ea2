"""The contract of a step: a pure function of batches of documents, run shard by shard on any engine.

A step adds or changes columns, and drops rows by writing a reason into the column `kaiyuan_dropped`. Its name, version
and settings make the fingerprint of what it writes, so that a finished shard is never made twice and never stands for
other content.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.reading.shard import DOCUMENT_ID
from data_tools.reading.tasks import Settings

# Null for a document that stays, else why it is dropped. The name leaves users theirs.
DROPPED = "kaiyuan_dropped"
# Goes up when the shards of all steps change.
VERSION = 1


class Step(Protocol):
    """What is done with documents."""

    @property
    def name(self) -> str:
        """In the field's words, for messages and fingerprints."""
        ...

    @property
    def version(self) -> int:
        """Goes up when the same input and settings give other output."""
        ...

    def identity(self) -> dict[str, Any]:
        """The settings that the output depends on, as JSON."""
        ...

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        """The same rows in the same order, with columns added or changed, and reasons in `kaiyuan_dropped`.

        Args:
            documents: `kaiyuan_id`, `text` (large_string), whatever the corpus has, and `kaiyuan_dropped` (string).
        """
        ...


def steps_identity(steps: Sequence[Step], settings: Settings) -> list[Any]:
    """What the output of the steps depends on beside the input."""
    return [VERSION, settings.text_documents, *([step.name, step.version, step.identity()] for step in steps)]


def column_list(names: Iterable[str]) -> str:
    """The columns of the documents for a message, without those that the tools add."""
    return ", ".join(name for name in names if name not in (DOCUMENT_ID, DROPPED))


def with_column(documents: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """The documents with a column added, or put in the place of the one of that name."""
    at = documents.schema.get_field_index(name)
    return documents.append_column(name, values) if at < 0 else documents.set_column(at, name, values)


def drop(documents: pa.RecordBatch, reasons: pa.Array) -> pa.RecordBatch:
    """The documents with `reasons` (string, null: none) noted where a row has no earlier reason."""
    return with_column(documents, DROPPED, pc.coalesce(documents.column(DROPPED), reasons))
