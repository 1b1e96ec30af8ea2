"""Exact duplicates by their digests, and candidates: pairs of documents that share a band.

Both merge the sorted runs of all shards as a stream. Of exact duplicates only the first takes part in the bands: a page
that is there a million times makes no pairs there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools._dedup import group_pairs, unique_pairs
from data_tools.dedup.arrays import CHUNK, PAIR, chunks, write_bits
from data_tools.dedup.scopes import Scope
from data_tools.engines.stage import Record, Target

PAIRS, OTHERS, NEEDED = ".pairs", ".others", ".needed"
_MERGE_BYTES = 1 << 28


@dataclass(frozen=True)
class FindExact:
    """Does a scope: groups of equal texts.

    `.pairs`: (first, other) of each group, `.others`: a bit a document, whether it is such another one.
    """

    def __call__(self, scope: Scope, target: Target) -> Record:
        others: NDArray[np.bool_] = np.zeros(scope.documents, bool)
        with target.file(PAIRS) as path, open(path, "wb") as file:
            candidates = Path(f"{path}.candidates")
            try:
                group_pairs(scope.digest_runs(), os.fsencode(candidates), _MERGE_BYTES, stars=True)
                for pairs in chunks(candidates, PAIR, 4 * CHUNK):
                    same = pairs[_same_digest(scope, pairs)]
                    others[same[:, 1].astype(np.int64)] = True
                    same.tofile(file)
            finally:
                candidates.unlink(missing_ok=True)
        with target.file(OTHERS) as path:
            write_bits(path, others)
        return {"others": int(others.sum())}


def _same_digest(scope: Scope, pairs: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the second halves of the digests agree too."""
    first, other = (scope.about(pairs[:, side])["digest"] for side in (0, 1))
    return np.asarray(first == other)


@dataclass(frozen=True)
class Band:
    """One band of a scope.

    Attributes:
        others: the bits of `FindExact`; None where exact duplicates take part.
    """

    scope: Scope
    number: int
    others: Path | None


@dataclass(frozen=True)
class FindCandidates:
    """Does a band: writes its candidate pairs, without those of two documents of indexes.

    Attributes:
        stars: pair the members of a key's group with its first one only: enough where pairs are not checked.
    """

    stars: bool

    def __call__(self, band: Band, target: Target) -> Record:
        omitted = band.others.read_bytes() if band.others else b""
        with target.file(PAIRS) as path:
            pairs, groups, largest = group_pairs(
                band.scope.band_runs(band.number),
                os.fsencode(path),
                _MERGE_BYTES,
                self.stars,
                band.scope.earlier,
                omitted,
            )
        return {"pairs": pairs, "groups": groups, "largest": largest}


@dataclass(frozen=True)
class ScopeBands:
    """A scope with the pairs of its bands."""

    scope: Scope
    pairs: Sequence[Path]


@dataclass(frozen=True)
class JoinBands:
    """Does a scope: each pair once, ascending; and a bit a document, whether it is in a pair."""

    def __call__(self, bands: ScopeBands, target: Target) -> Record:
        needed: NDArray[np.bool_] = np.zeros(bands.scope.documents, bool)
        with target.file(PAIRS) as path:
            inputs = [os.fsencode(pairs) for pairs in bands.pairs]
            count = unique_pairs(inputs, os.fsencode(path), os.fsencode(f"{path}.scratch"), _MERGE_BYTES)
            for pairs in chunks(path, PAIR):
                needed[pairs.ravel().astype(np.int64)] = True
        with target.file(NEEDED) as path:
            write_bits(path, needed)
        return {"pairs": count, "documents": int(needed.sum())}
