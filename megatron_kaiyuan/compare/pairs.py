"""Losses of two runs over the same tokens, which differ less than those of other tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from megatron_kaiyuan.compare.bootstrap import Floats
    from megatron_kaiyuan.compare.runs import Run


def paired_losses(one: Run, other: Run, begin: int, end: int) -> tuple[Floats, Floats]:
    """Mean loss of `one` less that of `other` in each span of tokens that rows of both begin and end with.

    Rows of one batch size are the spans themselves; of runs whose rows are longer or shorter, each span is the longer
    row, and the mean of the shorter ones in it.

    Args:
        begin, end: spans lie in the tokens (begin, end].

    Returns:
        The differences [spans], and the steps of `one` in each. Spans that hold a loss that is not finite are left out.
    """
    edges = np.intersect1d(_edges(one), _edges(other), assume_unique=True)
    edges = edges[(edges >= begin) & (edges <= end)]
    losses, steps = _means(one, edges)
    others, of_other = _means(other, edges)
    there = (steps > 0) & (of_other > 0)
    return losses[there] - others[there], steps[there]


def _edges(run: Run) -> NDArray[np.int64]:
    return np.unique(np.append(run.before[:1], run.tokens))


def _means(run: Run, edges: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean loss between edges and its steps, which are 0 where a loss is not finite."""
    usable = np.isfinite(run.losses) & (run.loss_steps > 0)
    weights = np.where(usable, run.loss_steps, 0.0)
    sums, steps, gaps = (
        np.concatenate([[0.0], np.cumsum(values)])
        for values in (weights * np.where(usable, run.losses, 0.0), weights, ~usable)
    )
    places = np.searchsorted(run.tokens, edges, side="right")
    steps, whole = np.diff(steps[places]), np.diff(gaps[places]) == 0
    means = np.divide(np.diff(sums[places]), steps, out=np.full(len(steps), np.nan), where=steps > 0)
    return means, np.where(whole, steps, 0.0)
