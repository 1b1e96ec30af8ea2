"""Losses of runs as curves on tokens, FLOPs and time, all smoothed over the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.compare.bootstrap import Floats
from megatron_kaiyuan.compare.runs import Run

# A run's curve is a mean over this share of the longest run.
_SMOOTHING = 0.02
_MOST_POINTS = 800


@dataclass(frozen=True)
class Curve:
    """One run's smoothed loss where it has rows, thinned; each axis is NaN where it is not known."""

    name: str
    tokens: Floats
    flops: Floats
    seconds: Floats
    loss: Floats


def smoothing_tokens(runs: Sequence[Run]) -> int:
    """The tokens that each point of every curve is a mean over."""
    return max(1, round(_SMOOTHING * max(run.end for run in runs)))


def loss_curves(runs: Sequence[Run]) -> list[Curve]:
    """The curves of all runs, in order."""
    width = smoothing_tokens(runs)
    return [_curve(run, width) for run in runs]


def trailing_mean(tokens: Floats, values: Floats, weights: Floats, width: float) -> Floats:
    """Weighted mean at each row over the rows of the last `width` tokens, itself among them."""
    first = np.searchsorted(tokens, tokens - width, side="right")
    first = np.minimum(first, np.arange(len(tokens)))
    sums, total = (np.concatenate([[0.0], np.cumsum(one)]) for one in (weights * values, weights))
    return (sums[1:] - sums[first]) / (total[1:] - total[first])


def thinned(count: int) -> NDArray[np.int64]:
    """Numbers of at most 800 rows, evenly apart, the last one among them."""
    return (
        np.unique(np.linspace(count - 1, 0, min(count, _MOST_POINTS)).round().astype(int))
        if count
        else np.array([], int)
    )


def _curve(run: Run, width: int) -> Curve:
    there = np.flatnonzero(np.isfinite(run.losses) & (run.loss_steps > 0))
    tokens = run.tokens[there].astype(np.float64)
    smooth = trailing_mean(tokens, run.losses[there], run.loss_steps[there], width)
    shown = thinned(len(there))
    rows = there[shown]
    flops = np.full(len(rows), np.nan) if run.flops is None else run.flops[rows]
    return Curve(run.name, tokens[shown], flops, run.seconds[rows], smooth[shown])
