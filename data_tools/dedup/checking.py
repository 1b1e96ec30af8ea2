"""The exact check of candidates: the shingle sets of the documents in pairs, and the Jaccard index of each pair."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools._dedup import jaccard
from data_tools.dedup.arrays import PAIR, map_array, read_array, read_bits, write_array
from data_tools.dedup.scopes import Scope, SignedShard
from data_tools.dedup.signatures import Recipe, text_memory
from data_tools.engines.stage import Record, Target
from data_tools.reading.documents import document_batches
from data_tools.reading.shard import TEXT
from megatron_kaiyuan.errors import UserError

# The set of the shard's document `row` is hashes [offsets[row], offsets[row + 1]); it is empty where it is not wanted.
SETS, OFFSETS, JACCARD = ".sets", ".offsets", ".jaccard"
PAIRS_PER_TASK = 1 << 20
_SET_BYTES = 1 << 26


@dataclass(frozen=True)
class Wanted:
    """A shard, of which some documents' shingles are wanted.

    Attributes:
        needed: the bits of `JoinBands`.
        first: ordinal of the shard's first document.
        name: of the files of its shingle sets.
    """

    signed: SignedShard
    needed: Path
    first: int
    name: str


@dataclass(frozen=True)
class WriteSets:
    """Does a shard: reads its texts again and writes the shingle sets that are wanted."""

    recipe: Recipe

    def __call__(self, wanted: Wanted, target: Target) -> Record:
        """Read a shard again.

        Raises:
            UserError: a file that an index names is gone, or was changed.
        """
        flags = read_bits(wanted.needed, wanted.first, wanted.first + wanted.signed.documents)
        rows = write_sets(self.recipe, wanted.signed, flags, target)
        return {"documents": rows}


def write_sets(recipe: Recipe, signed: SignedShard, flags: NDArray[np.bool_], target: Target) -> int:
    """Write the sets of the documents whose flags are set; how many."""
    signer = recipe.signer()
    sizes: NDArray[np.int64] = np.zeros(signed.documents + 1, np.int64)
    with target.file(SETS) as path, open(path, "wb") as file:
        for rows, documents in documents_again(signed, flags):
            offsets, hashes = signer.shingle_sets(*text_memory(documents.column(TEXT)))
            sizes[rows + 1] = np.diff(offsets)
            hashes.tofile(file)
    with target.file(OFFSETS) as path:
        write_array(path, np.cumsum(sizes))
    return int(flags.sum())


def documents_again(
    signed: SignedShard, flags: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
    """The documents of a shard whose flags are set, with their rows.

    Raises:
        UserError: a file that an index names is gone, or was changed.
    """
    if not flags.any():
        return
    if signed.index:
        _require_as_indexed(signed)
    last, start = int(np.flatnonzero(flags)[-1]), 0
    for batch in document_batches(signed.shard, signed.settings, ()):
        here = flags[start : start + len(batch.documents)]
        if here.any():
            yield np.flatnonzero(here) + start, batch.documents.filter(pa.array(here))
        start += len(batch.documents)
        if start > last:
            return


def _require_as_indexed(signed: SignedShard) -> None:
    for file in (task.file for task in signed.shard.tasks if task.file.is_local):
        try:
            state = os.stat(file.location)
            same = (state.st_size, str(state.st_mtime_ns)) == (file.size, file.version)
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{file.location}: of the index {signed.index} is gone or was changed, and its texts are needed to "
                "check candidates; bring it back, make the index again, or leave the check out with --no-verify"
            )


@dataclass(frozen=True)
class Chunk:
    """Pairs [start, stop) of a scope.

    Attributes:
        sets: paths of the shingle sets of the scope's shards, without suffix.
    """

    scope: Scope
    pairs: Path
    sets: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class CheckPairs:
    """Does a chunk: the Jaccard index of each pair, as float64."""

    def __call__(self, chunk: Chunk, target: Target) -> Record:
        pairs = read_array(chunk.pairs, PAIR, chunk.start * PAIR.itemsize, chunk.stop - chunk.start)
        documents = np.unique(pairs)
        places = _set_places(chunk, documents)
        sizes = (places[:, 1] - places[:, 0])[np.searchsorted(documents, pairs)].sum(axis=1)
        # Pieces whose sets fit the memory, however long the documents are; those of one pair always do.
        pieces = np.cumsum(sizes * 8) // _SET_BYTES
        with target.file(JACCARD) as path, open(path, "wb") as file:
            for cut in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(pieces)) + 1):
                _check(chunk, documents, places, pairs[cut]).tofile(file)
        return {"pairs": len(pairs)}


def _set_places(chunk: Chunk, documents: NDArray[np.uint64]) -> NDArray[np.int64]:
    """First hash and end of each document's set: [documents, 2]."""
    found: NDArray[np.int64] = np.zeros((len(documents), 2), np.int64)
    for number, where in chunk.scope.by_shard(documents):
        offsets = map_array(f"{chunk.sets[number]}{OFFSETS}", np.int64)
        rows = (documents[where] - np.uint64(chunk.scope.starts[number])).astype(np.int64)
        found[where] = np.stack([offsets[rows], offsets[rows + 1]], axis=1)
    return found


def _check(
    chunk: Chunk, documents: NDArray[np.uint64], places: NDArray[np.int64], pairs: NDArray[np.uint64]
) -> NDArray[np.float64]:
    here = np.unique(pairs)
    sets: list[NDArray[np.uint64]] = []
    for number, where in chunk.scope.by_shard(here):
        hashes = map_array(f"{chunk.sets[number]}{SETS}", np.uint64)
        sets += [hashes[first:stop] for first, stop in places[np.searchsorted(documents, here[where])].tolist()]
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    together = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    return jaccard(np.searchsorted(here, pairs).astype(np.int64), offsets, together)
