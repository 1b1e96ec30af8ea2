"""Some near-duplicates side by side with the documents that stay for them, so that a user can judge the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_tools._dedup import jaccard
from data_tools.dedup.arrays import map_array
from data_tools.dedup.checking import OFFSETS, SETS, documents_again, write_sets
from data_tools.dedup.keepers import SAMPLES
from data_tools.dedup.scopes import Scope, SignedShard
from data_tools.dedup.signatures import Recipe
from data_tools.engines.stage import Record, Target
from data_tools.reading.shard import DOCUMENT_ID, TEXT

_READ_CHARACTERS, _SHOWN_CHARACTERS, _BEFORE = 20_000, 160, 40
# Datasets whose pairs are shown, so that the report of a thousand of them reads not all shards once more.
_SHOWN_DATASETS = 20


@dataclass(frozen=True)
class Sample:
    """A near-duplicate and the document that stays for it.

    Attributes:
        places: number of the shard in the scope and row in it, of the two.
    """

    scope: Scope
    places: tuple[tuple[int, int], tuple[int, int]]

    @property
    def dataset(self) -> str:
        """That loses the near-duplicate."""
        return self.scope.shards[self.places[0][0]].shard.name


@dataclass(frozen=True)
class ReadSamples:
    """Does (shard, rows): the beginnings of the texts, and the shingles of these documents."""

    recipe: Recipe

    def __call__(self, task: tuple[SignedShard, tuple[int, ...]], target: Target) -> Record:
        signed, rows = task
        flags: NDArray[np.bool_] = np.zeros(signed.documents, bool)
        flags[list(rows)] = True
        write_sets(self.recipe, signed, flags, target)
        texts, ids = [], []
        for _, documents in documents_again(signed, flags):
            texts += pc.utf8_slice_codeunits(documents.column(TEXT), 0, _READ_CHARACTERS).to_pylist()
            ids += documents.column(DOCUMENT_ID).to_pylist()
        return {"rows": list(rows), "ids": ids, "texts": texts, "sets": str(target.path(""))}


def pick_samples(scopes: Sequence[Scope], choices: Sequence[Sequence[Record]]) -> list[Sample]:
    """Some near-duplicates a dataset, drawn by a hash.

    Args:
        choices: records of `Choose` by scope.
    """
    found = []
    for scope, records in zip(scopes, choices, strict=True):
        by_dataset: dict[str, list[tuple[int, Sample]]] = {}
        for draw, *ordinals in (row for record in records for row in record["samples"]):
            places = np.array(ordinals, np.uint64)
            shards = scope.shard_numbers(places).tolist()
            rows = [ordinal - int(scope.starts[number]) for ordinal, number in zip(ordinals, shards, strict=True)]
            sample = Sample(scope, ((shards[0], rows[0]), (shards[1], rows[1])))
            by_dataset.setdefault(sample.dataset, []).append((draw, sample))
        found += [
            [sample for _, sample in sorted(rows, key=lambda row: row[0])[:SAMPLES]] for rows in by_dataset.values()
        ]
    return [sample for samples in found[:_SHOWN_DATASETS] for sample in samples]


def sample_tasks(samples: Sequence[Sample]) -> list[tuple[SignedShard, tuple[int, ...]]]:
    """The shards that hold samples, with their rows."""
    rows: dict[str, set[int]] = {}
    shards: dict[str, SignedShard] = {}
    for sample in samples:
        for number, row in sample.places:
            signed = sample.scope.shards[number]
            shards[signed.base] = signed
            rows.setdefault(signed.base, set()).add(row)
    return [(shards[base], tuple(sorted(rows[base]))) for base in sorted(rows)]


def describe_samples(
    samples: Sequence[Sample], tasks: Sequence[tuple[SignedShard, tuple[int, ...]]], records: Sequence[Record]
) -> list[dict[str, Any]]:
    """The pairs with their texts from a little before the first difference on, and their Jaccard index."""
    by_base = {signed.base: record for (signed, _), record in zip(tasks, records, strict=True)}
    described = []
    for sample in samples:
        gone, stays = (_find(by_base[sample.scope.shards[number].base], row) for number, row in sample.places)
        sets = [gone[2], stays[2]]
        offsets = np.cumsum([0, *map(len, sets)], dtype=np.int64)
        index = float(jaccard(np.array([[0, 1]], np.int64), offsets, np.concatenate(sets))[0])
        start = max(_first_difference(gone[1], stays[1]) - _BEFORE, 0)
        sides = {
            side: {"id": document[0], "text": document[1][start : start + _SHOWN_CHARACTERS]}
            for side, document in (("removed", gone), ("stays", stays))
        }
        described.append({"dataset": sample.dataset, "jaccard": round(index, 4), "at": start, **sides})
    return described


def _find(record: Record, row: int) -> tuple[int, str, Any]:
    at = record["rows"].index(row)
    offsets = map_array(f"{record['sets']}{OFFSETS}", np.int64)
    hashes = map_array(f"{record['sets']}{SETS}", np.uint64)
    return record["ids"][at], record["texts"][at], np.array(hashes[offsets[row] : offsets[row + 1]])


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a.lower() != b.lower()), min(len(one), len(other)))
