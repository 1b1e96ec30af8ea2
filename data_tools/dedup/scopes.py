"""What is compared with what: the documents of one dataset, or of all; each with those of earlier indexes before them.

The documents of a scope are numbered from 0 in the order of its shards: that number is called ordinal here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.arrays import map_array
from data_tools.dedup.signing import ABOUT, ABOUT_ROW, BANDS, DIGESTS, RUN_ENTRY_BYTES
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings

# As group_pairs takes it: path, byte where the run begins, entries, ordinal of row 0.
Run = tuple[bytes, int, int, int]


@dataclass(frozen=True)
class SignedShard:
    """A shard whose files of the first stage are there.

    Attributes:
        base: path of these files, without suffix.
        documents, signed, hashed: how many there are, have shingles, have a digest.
        index: the folder of the index it comes from; "" for the input of this run.
        first_rows: places in the shard of the first row of each of its files; of no account for an index.
    """

    shard: Shard
    settings: Settings
    base: str
    documents: int
    signed: int
    hashed: int
    index: str = ""
    first_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scope:
    """Documents that are compared with each other.

    Attributes:
        name: unique among the scopes of a run, for the names of files.
        shards: those of indexes first.
    """

    name: str
    shards: tuple[SignedShard, ...]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The ordinal of each shard's first document, and the number of documents: [shards + 1]."""
        return np.cumsum([0, *(shard.documents for shard in self.shards)], dtype=np.int64)

    @property
    def documents(self) -> int:
        return int(self.starts[-1])

    @property
    def earlier(self) -> int:
        """Documents of indexes: their ordinals are below this one."""
        return int(self.starts[sum(bool(shard.index) for shard in self.shards)])

    def band_runs(self, band: int) -> list[Run]:
        """The runs of one band."""
        return [
            (os.fsencode(f"{shard.base}{BANDS}"), band * shard.signed * RUN_ENTRY_BYTES, shard.signed, int(start))
            for shard, start in zip(self.shards, self.starts[:-1], strict=True)
            if shard.signed
        ]

    def digest_runs(self) -> list[Run]:
        """The runs of digests."""
        return [
            (os.fsencode(f"{shard.base}{DIGESTS}"), 0, shard.hashed, int(start))
            for shard, start in zip(self.shards, self.starts[:-1], strict=True)
            if shard.hashed
        ]

    def by_shard(self, ordinals: NDArray[Any]) -> Iterator[tuple[int, slice]]:
        """The shards that hold some of `ordinals`, which ascend: the shard's number, and where they stand."""
        cuts: NDArray[np.int64] = np.searchsorted(ordinals, self.starts.astype(np.uint64))
        for number in np.flatnonzero(np.diff(cuts)):
            yield int(number), slice(int(cuts[number]), int(cuts[number + 1]))

    def about(self, ordinals: NDArray[np.uint64]) -> NDArray[Any]:
        """Rows of ABOUT_ROW of documents, in the order asked for."""
        unique, inverse = np.unique(ordinals, return_inverse=True)
        found = np.zeros(len(unique), ABOUT_ROW)
        for number, where in self.by_shard(unique):
            rows = unique[where] - np.uint64(self.starts[number])
            found[where] = map_array(f"{self.shards[number].base}{ABOUT}", ABOUT_ROW)[rows]
        return found[inverse]

    def shard_numbers(self, ordinals: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of the shard that holds each document."""
        return np.searchsorted(self.starts.astype(np.uint64), ordinals, side="right") - 1


def make_scopes(shards: Sequence[SignedShard], across: bool) -> list[Scope]:
    """One scope of all shards, or one a dataset; an index without a dataset of the run's is left out.

    Args:
        shards: those of indexes first.
    """
    if across:
        return [Scope("all", tuple(shards))]
    here = {shard.shard.name: shard.shard.dataset for shard in shards if not shard.index}
    return [
        Scope(f"{number:05d}", tuple(shard for shard in shards if shard.shard.name == name))
        for name, number in here.items()
    ]
