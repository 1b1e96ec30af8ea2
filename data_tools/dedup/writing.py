"""The last stage: a shard's documents again, without duplicates; or columns beside them that say which these are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_tools.dedup.arrays import map_array, read_array
from data_tools.dedup.keepers import DECISION, EXACT, NEAR, STAYS
from data_tools.dedup.scopes import Scope
from data_tools.dedup.signing import ABOUT, ABOUT_ROW, DUPLICATE_COUNT, WRITTEN, copies
from data_tools.engines.stage import Record, Target
from data_tools.reading.shard import DOCUMENT_ID, Shard
from data_tools.reading.tasks import Settings
from data_tools.steps.shards import COLUMNS, ApplySteps
from data_tools.steps.step import drop, with_column
from megatron_kaiyuan.files import checksum

# The id of the document that stays for it, and where that one is: a dataset, after the name of an index if it is there.
DUPLICATE_OF, DUPLICATE_IN = WRITTEN
CLUSTER = "cluster"
REASONS = {EXACT: "exact duplicate", NEAR: "duplicate"}


@dataclass(frozen=True)
class Decided:
    """A scope with the decisions about its documents: each file ascends by the ordinal."""

    scope: Scope
    decisions: tuple[Path, ...]

    def of_shard(self, number: int) -> NDArray[Any]:
        """The decisions about a shard's documents; their ordinals count from its first one."""
        first, stop = int(self.scope.starts[number]), int(self.scope.starts[number + 1])
        found = []
        for path in self.decisions:
            ordinals = map_array(path, DECISION)["ordinal"]
            cuts = [bisect_left(ordinals, ordinal) for ordinal in (first, stop)]
            found.append(read_array(path, DECISION, cuts[0] * DECISION.itemsize, cuts[1] - cuts[0]))
        decisions = np.concatenate(found) if found else np.zeros(0, DECISION)
        decisions["ordinal"] -= np.uint64(first)
        return decisions[np.argsort(decisions["ordinal"])]

    def number_of(self, shard: Shard) -> int:
        """The place of a shard of this run in the scope."""
        return next(i for i, signed in enumerate(self.scope.shards) if signed.shard == shard and not signed.index)

    def places(self) -> pa.Array:
        """For each shard of the scope where its documents are."""
        names = []
        for signed in self.scope.shards:
            parts = [Path(signed.index).name] if signed.index else []
            names.append("/".join([*parts, signed.shard.name]) if signed.shard.name else "".join(parts))
        return pa.array(names, pa.string())


@dataclass(frozen=True)
class WriteDocuments:
    """Does a shard: what stays has the column `duplicate_count`, what goes also says for which document.

    Attributes:
        decided: by number of the dataset.
    """

    decided: dict[int, Decided] = field(repr=False)
    settings: Settings
    max_bad_rows: int

    def __call__(self, shard: Shard, target: Target) -> Record:
        step = _Mark(self.decided[shard.dataset], shard)
        only_dropped = (DUPLICATE_OF, DUPLICATE_IN)
        return ApplySteps((step,), self.settings, self.max_bad_rows, only_dropped=only_dropped)(shard, target)


class _Mark:
    """The step of one shard, whose batches come in its order."""

    name, version = "dedup", 1

    def __init__(self, decided: Decided, shard: Shard):
        self._decisions = decided.of_shard(decided.number_of(shard))
        self._places = decided.places()
        self._row = 0

    def identity(self) -> dict[str, Any]:
        return {}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the next documents of the shard."""
        cuts: NDArray[np.int64] = np.searchsorted(self._decisions["ordinal"], [self._row, self._row + len(documents)])
        mine = self._decisions[cuts[0] : cuts[1]]
        at = (mine["ordinal"] - np.uint64(self._row)).astype(np.int64)
        self._row += len(documents)
        goes = mine["fate"] != STAYS
        counts = copies(documents)
        counts[at] = mine["copies"]
        documents = with_column(documents, DUPLICATE_COUNT, pa.array(counts))
        documents = with_column(documents, DUPLICATE_OF, _spread(mine["keeper"][goes], at[goes], len(documents)))
        places = self._places.take(pa.array(_spread(mine["shard"][goes], at[goes], len(documents))))
        documents = with_column(documents, DUPLICATE_IN, places)
        return drop(documents, _reasons(mine["fate"][goes], at[goes], len(documents)))


def _spread(values: NDArray[Any], at: NDArray[np.int64], length: int) -> pa.Array:
    """An array with `values` at their places and null elsewhere."""
    spread: NDArray[Any] = np.zeros(length, values.dtype)
    missing: NDArray[np.bool_] = np.ones(length, bool)
    spread[at], missing[at] = values, False
    return pa.array(spread, mask=missing)


def _reasons(fates: NDArray[np.uint8], at: NDArray[np.int64], length: int) -> pa.Array:
    names = pa.array([None, REASONS[EXACT], REASONS[NEAR]], pa.string())
    return names.take(_spread(fates, at, length))


@dataclass(frozen=True)
class WriteColumns:
    """Does a shard: a row a document with its id and what deduplication found; no text is read.

    Attributes:
        decided: by number of the dataset.
    """

    decided: dict[int, Decided] = field(repr=False)

    def __call__(self, shard: Shard, target: Target) -> Record:
        decided = self.decided[shard.dataset]
        number = decided.number_of(shard)
        signed = decided.scope.shards[number]
        about = map_array(f"{signed.base}{ABOUT}", ABOUT_ROW)
        mine = decided.of_shard(number)
        at, goes = mine["ordinal"].astype(np.int64), mine["fate"] != STAYS
        counts, cluster = np.array(about["copies"]), np.array(about["id"])
        counts[at], cluster[at] = mine["copies"], mine["cluster"]
        places = decided.places().take(_spread(mine["shard"][goes], at[goes], len(about)))
        columns = {
            DOCUMENT_ID: pa.array(about["id"]),
            DUPLICATE_OF: _spread(mine["keeper"][goes], at[goes], len(about)),
            DUPLICATE_IN: places,
            DUPLICATE_COUNT: pa.array(counts),
            CLUSTER: pa.array(cluster),
        }
        with target.file(COLUMNS) as path:
            pq.write_table(pa.table(columns), path, compression="zstd")
        gone = {reason: int((mine["fate"] == fate).sum()) for fate, reason in REASONS.items()}
        return {
            "first_rows": list(signed.first_rows),
            "rows": len(about),
            "documents": len(about) - sum(gone.values()),
            "dropped": {reason: count for reason, count in gone.items() if count},
            "bad": [],
            "checksums": {COLUMNS: checksum(target.path(COLUMNS))},
        }


def by_dataset(scopes: Sequence[Scope], decisions: Sequence[tuple[Path, ...]]) -> dict[int, Decided]:
    """For the number of each dataset of the run its scope with the decisions."""
    found = {}
    for scope, paths in zip(scopes, decisions, strict=True):
        for signed in scope.shards:
            if not signed.index:
                found[signed.shard.dataset] = Decided(scope, paths)
    return found
