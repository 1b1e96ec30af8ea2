"""How a score orders groups of documents: exact figures of ranks, ties at their mean rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values at the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def aucs(values: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """For each group the chance that one of its documents scores above one of the others, ties counting half.

    From the rank sum (Mann and Whitney, 1947). NaN where a group has no or all documents.

    Args:
        groups: number of each document's group, below `count`.
    """
    sizes = np.bincount(groups, minlength=count).astype(float)
    sums = np.bincount(groups, mean_ranks(values), minlength=count)
    pairs = sizes * (len(values) - sizes)
    return np.divide(sums - sizes * (sizes + 1) / 2, pairs, out=np.full(count, np.nan), where=pairs > 0)


def between_share(values: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> float:
    """The share of the variance of the ranks that lies between the groups: Kruskal and Wallis's H / (n - 1).

    0 where the groups are ordered alike, NaN where all values are equal.
    """
    ranks = mean_ranks(values)
    ranks -= ranks.mean() if len(ranks) else 0.0
    total = float(ranks @ ranks)
    if total == 0:
        return float("nan")
    sizes = np.bincount(groups, minlength=count)
    sums = np.bincount(groups, ranks, minlength=count)[sizes > 0]
    return float((sums**2 / sizes[sizes > 0]).sum() / total)


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The rank correlation of two scores over the documents that have both; NaN where one has no two values."""
    both = ~(np.isnan(first) | np.isnan(second))
    if both.sum() < 2:
        return float("nan")
    one, two = (ranks - ranks.mean() for ranks in (mean_ranks(first[both]), mean_ranks(second[both])))
    product = float(one @ one) * float(two @ two)
    return float(one @ two) / float(np.sqrt(product)) if product > 0 else float("nan")
