"""The groups of an audit, and how they stand apart in scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.scores.audit_source import DATASET, ScoredDataset
from data_tools.scores.statistics import aucs, between_share, spearman

MOST_SHOWN = 50
# Scored documents that a group must have to be listed: with one document each, groups would hold all of the variance.
FEWEST = 30


@dataclass(frozen=True)
class Groups:
    """Groups of documents, the largest first.

    Attributes:
        by: the column.
        each: number of each document's group.
        shown: the same, with what comes after the first MOST_SHOWN groups as one more.
        names: of the groups in `shown`.
        others: the last of `names` stands for several.
    """

    by: str
    each: NDArray[np.int64]
    shown: NDArray[np.int64]
    names: list[str]
    others: bool


def find_groups(table: pa.Table, sources: Sequence[ScoredDataset], by: str | None) -> Groups:
    """Groups by a column; None: `domain` where it tells documents apart, else `dataset`.

    Datasets are groups even without a document.
    """
    if by is None:
        domains = table.column("domain").drop_null().unique().to_pylist() if "domain" in table.column_names else []
        by = "domain" if len(domains) > 1 or (domains and len(sources) == 1) else DATASET
    known = [source.name or "documents" for source in sources] if by == DATASET else []
    if by == DATASET:
        labels = np.array(known, object)[table.column(DATASET).to_numpy()]
    else:
        values = table.column(by).to_pylist()
        labels = np.array([f"{value:g}" if isinstance(value, float) else value or "none" for value in values], object)
    names, numbers, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place: NDArray[np.int64] = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    found = names[order].tolist()
    found += sorted(set(known).difference(found))
    more = len(found) - MOST_SHOWN
    shown = [*found[:MOST_SHOWN], f"{more:,} others"] if more > 0 else found
    each = place[numbers]
    return Groups(by, each, np.minimum(each, MOST_SHOWN), shown, more > 0)


def separation(scores: NDArray[np.float64], groups: Groups) -> dict[str, Any]:
    """How far the groups stand apart in a score.

    Returns:
        `documents`, `missing`; `between`: the share of the ranks' variance between groups, of the groups with FEWEST or
        more scored documents, None where there are no two; `groups`: for each name `documents`, `scored`, `auc` and
        `median`.
    """
    there = ~np.isnan(scores)
    values, numbers = scores[there], groups.shown[there]
    sizes = np.bincount(groups.shown, minlength=len(groups.names)).tolist()
    found = {}
    for number, (name, auc) in enumerate(zip(groups.names, aucs(values, numbers, len(sizes)).tolist(), strict=True)):
        mine = values[numbers == number]
        median = float(np.median(mine)) if len(mine) else None
        found[name] = {"documents": sizes[number], "scored": len(mine), "auc": _number(auc), "median": median}
    return {
        "documents": int(there.sum()),
        "missing": int((~there).sum()),
        "between": _between(values, groups.each[there]),
        "groups": found,
    }


def _between(values: NDArray[np.float64], each: NDArray[np.int64]) -> float | None:
    sizes = np.bincount(each)
    large = sizes >= FEWEST
    if large.sum() < 2:
        return None
    counts = large[each]
    return _number(between_share(values[counts], each[counts], len(sizes)))


def correlation(one: str, two: str, values: dict[str, NDArray[np.float64]], groups: Groups) -> dict[str, Any]:
    """The rank correlation of two scores over all documents and within each group; its mean by the groups' sizes."""
    within = {
        name: _number(spearman(values[one][groups.shown == number], values[two][groups.shown == number]))
        for number, name in enumerate(groups.names)
    }
    sizes = np.bincount(groups.shown, minlength=len(within))
    # Several groups in one are not within a group.
    single = list(within.values())[: len(within) - groups.others]
    known = [(sizes[number], value) for number, value in enumerate(single) if value is not None]
    mean = sum(size * value for size, value in known) / sum(size for size, _ in known) if known else None
    over_all = _number(spearman(values[one], values[two]))
    return {"scores": [one, two], "over_all": over_all, "within": within, "mean": mean}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
