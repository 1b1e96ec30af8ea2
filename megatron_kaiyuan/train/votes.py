"""What ranks report to each other once a step, in the all-reduce that carries the loss: no collective of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Votes:
    """Of one rank 0 or 1 each; summed over the ranks, how many said so.

    Attributes:
        stop: was asked to stop after this step.
        save: wants a checkpoint of this step.
        writing: still writes its part of an earlier checkpoint.
        failed: could not write its part of an earlier checkpoint.
        overflow: this step overflowed on its device, which left neither infinity nor NaN (`Platform.keeps_overflow`),
            or did so before an interruption and is skipped again.
        metrics: knows a metric that the ranks have not agreed on.
    """

    stop: int = 0
    save: int = 0
    writing: int = 0
    failed: int = 0
    overflow: int = 0
    metrics: int = 0


def either(votes: Iterable[Votes]) -> Votes:
    """One rank's votes from those of its hooks: 1 where any of them said so."""
    return Votes(*map(max, zip(astuple(Votes()), *map(astuple, votes), strict=True)))
