"""Mixtures of datasets, and a law of which the slopes are known."""

from __future__ import annotations

import numpy as np

SLOPES = np.array([-0.9, -0.2, 0.1, 0.4, 0.6])


def mixtures(runs: int, seed: int, datasets: int = len(SLOPES)) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(datasets, 0.7), runs)
