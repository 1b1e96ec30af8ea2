"""What of a collective is waited for when it runs beside a pass: bucket by bucket for gradients and weights.

As megatron-core 0.16 schedules it (distributed/param_and_grad_buffer.py): the collectives of a buffer run one after the
other. Gradients of a bucket are reduced as soon as the backward pass has made all of them, the last layers first. The
weights of the first bucket are gathered when the forward pass starts, and the next ones when a bucket is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """One bucket: seconds of the pass that computes with it, and of its collective."""

    compute: float
    collective: float


def waited_for_gradients(pieces: Sequence[Piece]) -> float:
    """Seconds from the end of the backward pass to the last reduction's end; pieces in the order of that pass."""
    computed = reduced = 0.0
    for piece in pieces:
        computed += piece.compute
        reduced = max(reduced, computed) + piece.collective
    return reduced - computed


def waited_for_weights(pieces: Sequence[Piece]) -> float:
    """Seconds that the forward pass stands still for weights; pieces in the order of that pass."""
    computed = waited = 0.0
    gathered = pieces[0].collective if pieces else 0.0
    for index, piece in enumerate(pieces):
        start = max(computed, gathered)
        waited += start - computed
        computed = start + piece.compute
        if index + 1 < len(pieces):
            gathered = start + pieces[index + 1].collective
    return waited
