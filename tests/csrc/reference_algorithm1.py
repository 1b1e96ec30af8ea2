"""Algorithm 1, selection and repetition once more: slow, in Python and NumPy, written from the report and not from
csrc/. Even the hash is written again, from its published constants."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

MASK = (1 << 64) - 1
ROW, PERTURBATION, ORDER_TIE, SELECTION, REPETITION = range(5)


class Rows(NamedTuple):
    """One dataset: sequences, scores (or None) and copies of each (or None)."""

    sequences: list[int]
    scores: list[float] | None = None
    copies: list[int] | None = None

    def expanded(self) -> list[tuple[int, float | None, int]]:
        """(sequence, score, copy) for every copy."""
        copies = self.copies or [1] * len(self.sequences) if self.copies is None else self.copies
        scores = self.scores if self.scores is not None else [None] * len(self.sequences)
        return [(q, s, c) for q, s, n in zip(self.sequences, scores, copies, strict=True) for c in range(n)]


def splitmix(x: int) -> int:
    """One output of SplitMix64 from state x."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(seed: int, purpose: int, document: int, copy: int = 0) -> int:
    return splitmix(splitmix(splitmix(splitmix(seed) ^ purpose) ^ document) ^ copy)


def uniform(bits: int) -> float:
    return (bits >> 11) / 2**53


def order(datasets: list[Rows], seed: int, perturb: float = 0.0) -> list[int]:
    """Steps 1 to 4, one row at a time."""
    total = sum(len(rows.expanded()) for rows in datasets)
    rescaled = []
    for dataset, rows in enumerate(datasets):
        keyed = []
        for sequence, score, copy in rows.expanded():
            identifier = (dataset << 48) + sequence
            tie = draw(seed, ROW, identifier, copy)
            keyed.append((tie if score is None else score, tie, identifier))
        for rank, (_, tie, identifier) in enumerate(sorted(keyed), start=1):
            shift = perturb * uniform(splitmix(tie ^ PERTURBATION))
            # float(Fraction) rounds the exact quotient once, so equal rationals are equal.
            position = float(Fraction(rank, len(keyed))) * float(total) + shift
            rescaled.append((position, splitmix(tie ^ ORDER_TIE), identifier))
    return [identifier for _, _, identifier in sorted(rescaled)]


def shuffle(datasets: list[Rows], seed: int) -> list[int]:
    keyed = [
        (draw(seed, ROW, (dataset << 48) + sequence, copy), (dataset << 48) + sequence)
        for dataset, rows in enumerate(datasets)
        for sequence, _, copy in rows.expanded()
    ]
    return [identifier for _, identifier in sorted(keyed)]


def select(scores: list[float] | None, size: int, count: int, seed: int) -> list[int]:
    """The last `count` rows in ascending order of (score, draw)."""
    keys = np.zeros(size) if scores is None else np.asarray(scores, float)
    draws = np.array([draw(seed, SELECTION, row) for row in range(size)], np.uint64)
    return sorted(np.lexsort((draws, keys))[size - count :].tolist())


def copies(sequences: list[int], repeat: float, seed: int) -> list[int]:
    whole = int(repeat)
    return [whole + (uniform(draw(seed, REPETITION, sequence)) < repeat - whole) for sequence in sequences]
