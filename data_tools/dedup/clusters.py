"""Clusters: the connected components of exact duplicates and of checked pairs, by union-find in 8 bytes a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools._dedup import Components
from data_tools.dedup.arrays import CHUNK, PAIR, chunks, read_array
from data_tools.dedup.scopes import Scope
from data_tools.engines.stage import Record, Target

MEMBERS = ".members"
# `cluster`: the smallest ordinal of it.
MEMBER: np.dtype[Any] = np.dtype([("ordinal", "<u8"), ("cluster", "<u8")])


@dataclass(frozen=True)
class Edges:
    """What joins the documents of a scope.

    Attributes:
        exact: pairs of equal texts; None where there was no search.
        near: candidate pairs; None where there was no search.
        jaccard: files of the Jaccard indexes of `near`, one after the other; empty where they are not checked.
        threshold: pairs with at least this index are edges.
    """

    scope: Scope
    exact: Path | None
    near: Path | None
    jaccard: tuple[Path, ...] = ()
    threshold: float = 0.0

    def exact_edges(self) -> Iterator[NDArray[np.uint64]]:
        """(first, other) of equal texts, [edges, 2] at once."""
        if self.exact:
            yield from chunks(self.exact, PAIR)

    def near_edges(self) -> Iterator[NDArray[np.uint64]]:
        """Pairs that passed the check, [edges, 2] at once."""
        if not self.near:
            return
        if not self.jaccard:
            yield from chunks(self.near, PAIR)
        start = 0
        for path in self.jaccard:
            similar = read_array(path, np.float64) >= self.threshold
            yield read_array(self.near, PAIR, start * PAIR.itemsize, len(similar))[similar]
            start += len(similar)


@dataclass(frozen=True)
class FindClusters:
    """Does a scope: writes the documents that are not alone in their cluster, ascending."""

    def __call__(self, edges: Edges, target: Target) -> Record:
        documents = edges.scope.documents
        components = Components(documents)
        count = 0
        for source in (edges.exact_edges(), edges.near_edges()):
            for pairs in source:
                components.add(np.ascontiguousarray(pairs))
                count += len(pairs)
        not_alone: NDArray[np.bool_] = np.zeros(documents, bool)
        for ordinals, labels in _labels(components):
            others = labels != ordinals
            not_alone[ordinals[others].astype(np.int64)] = True
            not_alone[labels[others].astype(np.int64)] = True
        with target.file(MEMBERS) as path, open(path, "wb") as file:
            for ordinals, labels in _labels(components):
                here = not_alone[int(ordinals[0]) : int(ordinals[-1]) + 1]
                members = np.zeros(np.count_nonzero(here), MEMBER)
                members["ordinal"], members["cluster"] = ordinals[here], labels[here]
                members.tofile(file)
        return {"edges": count, "members": int(not_alone.sum())}


def _labels(components: Components) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    for first in range(0, components.nodes, CHUNK):
        last = min(first + CHUNK, components.nodes)
        yield np.arange(first, last, dtype=np.uint64), components.labels(first, last)
