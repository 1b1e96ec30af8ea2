"""Who of a cluster stays: the documents of an index, then the dataset of priority, the best score, the smallest id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.arrays import chunks
from data_tools.dedup.clusters import MEMBER, Edges
from data_tools.engines.stage import Record, Target

DECISIONS = ".decisions"
STAYS, EXACT, NEAR = 0, 1, 2
# Of a document that is not alone in its cluster. `keeper`: id of the document that stays for it, its own where it stays
# itself; `shard`: of the scope, that holds the keeper; `copies`: how many documents it stands for; `cluster`: id of the
# cluster's first document.
DECISION: np.dtype[Any] = np.dtype(
    [("ordinal", "<u8"), ("keeper", "<u8"), ("shard", "<u4"), ("copies", "<i8"), ("cluster", "<u8"), ("fate", "u1")]
)
MEMBERS_PER_TASK = 1 << 22
SAMPLES = 3
_LISTED = 1000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class ClusterBatch:
    """Some clusters of a scope: those whose hash is `number` modulo `count`, so that they fit the memory."""

    edges: Edges
    members: Path
    number: int
    count: int


@dataclass(frozen=True)
class Rules:
    """How the keeper is chosen.

    Attributes:
        across: the order of the datasets comes before the score.
        max_cluster: clusters with more different texts than this lose their exact duplicates only; 0: no limit.
        direct: a near-duplicate goes only if it is one of a document that stays, not of another one that goes.
    """

    across: bool = False
    max_cluster: int = 0
    direct: bool = False


@dataclass(frozen=True)
class Choose:
    """Does some clusters: writes a decision about each document of them that is not of an index, ascending."""

    rules: Rules

    def __call__(self, choice: ClusterBatch, target: Target) -> Record:
        found = _Clusters(choice, self.rules)
        found.decide()
        decisions = found.decisions()
        with target.file(DECISIONS) as path, open(path, "wb") as file:
            decisions.tofile(file)
        return {"decisions": len(decisions), **found.counts()}


class _Clusters:
    """Members of clusters as arrays, in the order of their ordinals; `root` and `keeper` are places in these arrays."""

    def __init__(self, choice: ClusterBatch, rules: Rules):
        self._edges, self._scope, self._rules = choice.edges, choice.edges.scope, rules
        mine = [members[_share(members["cluster"], choice)] for members in chunks(choice.members, MEMBER)]
        members = np.concatenate(mine) if mine else np.zeros(0, MEMBER)
        # Clusters of an index alone were decided about when it was made.
        members = members[np.isin(members["cluster"], members["cluster"][members["ordinal"] >= self._scope.earlier])]
        self.ordinals = np.ascontiguousarray(members["ordinal"])
        self._clusters, self.cluster = np.unique(members["cluster"], return_inverse=True)
        self._about = self._scope.about(self.ordinals)
        self._shards = self._scope.shard_numbers(self.ordinals)
        self._is_new = self.ordinals >= self._scope.earlier
        self.rank = self._rank()
        self.keeper = np.arange(len(self.ordinals))
        # The best of the documents with the same text.
        self.root = self._best_of(self._exact_groups())

    def decide(self) -> None:
        """Find each member's keeper."""
        texts = np.bincount(self.cluster[self.root == np.arange(len(self.root))], minlength=len(self._clusters))
        self.quarantined = (texts > self._rules.max_cluster) & bool(self._rules.max_cluster)
        best = self._directly() if self._rules.direct else self._best_of(self.cluster)
        self.keeper = np.where(self.quarantined[self.cluster], self.root, best[self.root])
        # What an index holds stays.
        self.keeper = np.where(self._is_new, self.keeper, np.arange(len(self.keeper)))

    def decisions(self) -> NDArray[Any]:
        """Rows of DECISION."""
        stays = self.keeper == np.arange(len(self.keeper))
        copies: NDArray[np.int64] = np.zeros(len(self.keeper), np.int64)
        np.add.at(copies, self.keeper, self._about["copies"])
        found = np.zeros(len(self.keeper), DECISION)
        found["ordinal"], found["shard"] = self.ordinals, self._shards[self.keeper]
        found["keeper"] = self._about["id"][self.keeper]
        found["copies"] = np.where(stays, copies, self._about["copies"])
        found["cluster"] = self._scope.about(self._clusters)["id"][self.cluster]
        same_text = self.root[self.keeper] == self.root
        found["fate"] = np.where(stays, STAYS, np.where(same_text, EXACT, NEAR))
        self.fate = found["fate"]
        return found[self._is_new]

    def counts(self) -> dict[str, Any]:
        """Return what the report shows: by dataset how many go and why, clusters by size, and examples."""
        names = [signed.shard.name for signed in self._scope.shards]
        by_dataset: dict[str, dict[str, int]] = {}
        quarantined = self.quarantined[self.cluster] & (self.fate == STAYS)
        for number, where in self._scope.by_shard(self.ordinals):
            if self._scope.shards[number].index:
                continue
            entry = by_dataset.setdefault(names[number], {"exact": 0, "near": 0, "quarantined": 0})
            entry["exact"] += int((self.fate[where] == EXACT).sum())
            entry["near"] += int((self.fate[where] == NEAR).sum())
            entry["quarantined"] += int(quarantined[where].sum())
        return {
            "datasets": by_dataset,
            "sizes": np.bincount(_size_class(np.bincount(self.cluster))).tolist() if len(self.cluster) else [],
            "quarantine": self._quarantine(),
            "samples": self._samples(),
        }

    def _rank(self) -> NDArray[np.int64]:
        """Places in the order of who stays, 0 for the first."""
        about = self._about
        datasets = np.array([signed.shard.dataset for signed in self._scope.shards])[self._shards]
        priority = np.where(self._is_new, 1 + (datasets if self._rules.across else 0), 0)
        scores = np.where(np.isnan(about["score"]), -np.inf, about["score"])
        order = np.lexsort((self.ordinals, about["id"], -scores, priority))
        rank: NDArray[np.int64] = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def _exact_groups(self) -> NDArray[np.int64]:
        """Of each member the first one with the same text."""
        first = np.arange(len(self.ordinals))
        for pairs in self._edges.exact_edges():
            inside, places = self._places(pairs)
            first[places[inside][:, 1]] = places[inside][:, 0]
        return first

    def _best_of(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each member the best-ranked one of its group."""
        worst_first = np.argsort(-self.rank)
        best: NDArray[np.int64] = np.zeros(int(groups.max(initial=-1)) + 1, np.int64)
        best[groups[worst_first]] = worst_first  # of several values the last one stays
        return best[groups]

    def _places(self, pairs: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which pairs are of members here, and the places of all [pairs, 2]."""
        if not len(self.ordinals):
            return np.zeros(len(pairs), bool), np.zeros(pairs.shape, np.int64)
        places = np.minimum(np.searchsorted(self.ordinals, pairs), len(self.ordinals) - 1)
        return (self.ordinals[places] == pairs).all(axis=1), places

    def _directly(self) -> NDArray[np.int64]:
        """From the best-ranked text on: a text stays unless it is a near-duplicate of one that stays."""
        found = [places[inside] for inside, places in map(self._places, self._edges.near_edges())]
        pairs = self.root[np.concatenate(found)] if found else np.zeros((0, 2), np.int64)
        swap = self.rank[pairs[:, 0]] > self.rank[pairs[:, 1]]
        better, worse = np.where(swap, pairs[:, 1], pairs[:, 0]), np.where(swap, pairs[:, 0], pairs[:, 1])
        # From the worst-ranked to the best, so that of several keepers the best is the last and stays.
        order = np.argsort(-self.rank[better])
        better, worse = better[order], worse[order]
        keeper = np.arange(len(self.root))
        open_: NDArray[np.bool_] = np.ones(len(keeper), bool)
        stays: NDArray[np.bool_] = np.zeros(len(keeper), bool)
        while open_.any():
            waits: NDArray[np.bool_] = np.zeros(len(keeper), bool)
            waits[worse[open_[better]]] = True
            now = open_ & ~waits
            stays |= now
            open_ &= ~now
            goes = open_[worse] & stays[better]
            open_[worse[goes]] = False
        direct = stays[better] & ~stays[worse]
        keeper[worse[direct]] = better[direct]
        return keeper

    def _quarantine(self) -> list[dict[str, int]]:
        """The largest ones, largest first."""
        sizes = np.bincount(self.cluster, minlength=len(self._clusters))
        numbers = np.flatnonzero(self.quarantined)
        numbers = numbers[np.argsort(-sizes[numbers], kind="stable")][:_LISTED]
        ids = self._scope.about(self._clusters[numbers])["id"]
        return [
            {"cluster": int(cluster), "documents": int(size)} for cluster, size in zip(ids, sizes[numbers], strict=True)
        ]

    def _samples(self) -> list[list[int]]:
        """[hash, ordinal, ordinal of its keeper] of some near-duplicates a dataset, the least hashes first."""
        near = np.flatnonzero((self.fate == NEAR) & self._is_new & self._is_new[self.keeper])
        hashes = _mix(self.ordinals[near])
        order = np.argsort(hashes)
        found: dict[str, list[list[int]]] = {}
        names = [signed.shard.name for signed in self._scope.shards]
        shards = self._shards[near]
        for number in np.unique(shards):
            for at in order[shards[order] == number][:SAMPLES]:
                member = near[at]
                row = [int(hashes[at]), int(self.ordinals[member]), int(self.ordinals[self.keeper[member]])]
                found.setdefault(names[number], []).append(row)
        return [row for rows in found.values() for row in sorted(rows)[:SAMPLES]]


def _share(clusters: NDArray[np.uint64], choice: ClusterBatch) -> NDArray[np.bool_]:
    return np.asarray(_mix(clusters) % np.uint64(choice.count) == np.uint64(choice.number))


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = numbers * _GOLDEN
    return (mixed ^ (mixed >> np.uint64(32))) * _GOLDEN


def _size_class(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 for two documents, 1 for up to 4, 2 for up to 8, and so on."""
    return np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.int64) - 1
