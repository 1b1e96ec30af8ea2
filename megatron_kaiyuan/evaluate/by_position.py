"""Loss against the position in the context: does a model predict better the more it has read?

Position 0 is the first token that is predicted, from one token before it. Bins grow with the position, four for each
doubling: the loss falls fast at first, and a bin of few positions would be noise later.

Tensor suffix: s position.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS_PER_DOUBLING = 4


@dataclass
class ByPosition:
    """Sums over predicted tokens for each position; two of them add up, whatever their lengths."""

    nats_s: NDArray[np.float64]
    tokens_s: NDArray[np.int64]

    @classmethod
    def of(cls, nats_bs: NDArray[np.float64]) -> ByPosition:
        """Of the losses of a batch of windows, in nats."""
        return cls(nats_bs.sum(0), np.full(nats_bs.shape[1], len(nats_bs)))

    @classmethod
    def empty(cls) -> ByPosition:
        return cls(np.zeros(0), np.zeros(0, np.int64))

    def __add__(self, other: ByPosition) -> ByPosition:
        return ByPosition(_sum(self.nats_s, other.nats_s), _sum(self.tokens_s, other.tokens_s))

    def figures(self) -> list[dict[str, Any]]:
        """Bins as {"from", "to", "tokens", "nats_per_token"}, of positions `from` up to `to`, which is left out."""
        edges = bin_edges(len(self.tokens_s))
        return [
            {
                "from": start,
                "to": stop,
                "tokens": int(self.tokens_s[start:stop].sum()),
                "nats_per_token": float(self.nats_s[start:stop].sum() / self.tokens_s[start:stop].sum()),
            }
            for start, stop in itertools.pairwise(edges)
        ]


def bin_edges(length: int) -> list[int]:
    """Ends of the bins of so many positions: 0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, ... length."""
    doublings = np.arange(0, _BINS_PER_DOUBLING * 64) / _BINS_PER_DOUBLING
    edges = np.round(2.0**doublings).astype(object)
    return [0, *sorted({int(edge) for edge in edges if edge < length}), length]


def _sum(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    longest = max(len(one), len(other))
    total: NDArray[Any] = np.pad(one, (0, longest - len(one))) + np.pad(other, (0, longest - len(other)))
    return total
