"""Along the tokens of a phase: what share each dataset gives, and from which part of its corpus. For the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# 2: a document's tokens lie in every bucket that they reach into, not all in the bucket of its first token; hundredths
# and tenths are of the whole corpus, also where the phase drops documents without a score.
VERSION = 2
BUCKETS = 50
# What the builder sums is tokens * (2 * percentile + 1): the middle of a hundredth of the corpus is that over 200.
_PERCENTILE_STEPS = 200
_GROUP = ("documents", "tokens", "corpus_documents", "corpus_tokens")


class DatasetProfile(NamedTuple):
    """What the builder knows of one dataset.

    Attributes:
        score: the column, or None.
        tokens: u64[buckets], the tokens that lie in each bucket.
        quality: u64[buckets], sums of tokens * (2 * percentile + 1), where percentile 0 is the lowest hundredth of the
            corpus by score.
        groups: documents and tokens, in the phase with every copy and in the corpus once, of each tenth of the corpus
            by score (ascending), or of all of it. Documents without a score are the lowest of the corpus.
    """

    name: str
    score: str | None
    tokens: NDArray[np.uint64]
    quality: NDArray[np.uint64]
    groups: Sequence[tuple[int, int, int, int]]


def phase_profile(total: int, datasets: Sequence[DatasetProfile]) -> dict[str, Any]:
    """profile.json: `tokens`, the upper edge of each bucket; for each dataset its tokens in it and their mean quantile
    (rank by score, from 0 / documents of the corpus) within half a hundredth; and how much of each tenth is seen."""
    return {
        "version": VERSION,
        "tokens": bucket_ends(total, len(datasets[0].tokens)),
        "datasets": {
            dataset.name: {
                "score": dataset.score,
                "tokens": dataset.tokens.tolist(),
                "mean_quantile": _mean_quantiles(dataset),
            }
            for dataset in datasets
        },
        "exposure": {
            dataset.name: {
                "score": dataset.score,
                "groups": [dict(zip(_GROUP, group, strict=True)) for group in dataset.groups],
            }
            for dataset in datasets
        },
    }


def bucket_ends(total: int, buckets: int) -> list[int]:
    """The tokens up to the end of each bucket, where `total` tokens are cut into equal parts."""
    return [-(-total * (bucket + 1) // buckets) for bucket in range(buckets)]


def _mean_quantiles(dataset: DatasetProfile) -> list[float | None]:
    if dataset.score is None:
        return [None] * len(dataset.tokens)
    pairs = zip(dataset.quality.tolist(), dataset.tokens.tolist(), strict=True)
    return [quality / (_PERCENTILE_STEPS * tokens) if tokens else None for quality, tokens in pairs]
