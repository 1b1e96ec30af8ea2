"""Along the tokens of a phase: what share each dataset gives, and its mean score. For the report's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 50


class PhaseProfile:
    """Sums over documents in equal buckets of the phase's tokens; a document belongs to its first token's bucket.

    Args:
        datasets: how many.
        total: tokens of the phase.

    Attributes:
        documents, tokens: int64[datasets], what each dataset gave so far.
    """

    def __init__(self, datasets: int, total: int):
        self.total = total
        self.buckets = max(1, min(BUCKETS, total))
        self.documents: NDArray[np.int64] = np.zeros(datasets, np.int64)
        self._tokens: NDArray[np.int64] = np.zeros((datasets, self.buckets), np.int64)
        self._scored = np.zeros((datasets, self.buckets))

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self._tokens.sum(axis=1)

    def add(
        self,
        datasets: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> None:
        """Count documents: dataset index, first token in the phase, tokens, score (NaN: none)."""
        # An empty document at the very end starts at the total.
        buckets = np.minimum(starts * self.buckets // self.total, self.buckets - 1)
        cells = datasets * self.buckets + buckets
        shape = self._tokens.shape
        self.documents += np.bincount(datasets, minlength=shape[0])
        # bincount adds up in float64, which is exact below 2^53 tokens.
        tokens = np.bincount(cells, weights=lengths, minlength=self._tokens.size)
        self._tokens += tokens.astype(np.int64).reshape(shape)
        self._scored += np.bincount(cells, weights=lengths * scores, minlength=self._tokens.size).reshape(shape)

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """`tokens`: upper edge of each bucket; for each dataset its tokens and token-weighted mean score in it."""
        edges = [-(-self.total * (bucket + 1) // self.buckets) for bucket in range(self.buckets)]
        means = np.full(self._scored.shape, np.nan)
        np.divide(self._scored, self._tokens, out=means, where=self._tokens > 0)
        datasets = {
            name: {
                "tokens": self._tokens[row].tolist(),
                "mean_score": [mean if math.isfinite(mean) else None for mean in means[row].tolist()],
            }
            for row, name in enumerate(names)
        }
        return {"tokens": edges, "datasets": datasets}
