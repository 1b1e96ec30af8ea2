"""What a share of a mixture is worth when its dataset has to be repeated for it.

D tokens read from U unique ones are worth

    D' = U + U R* (1 - exp(-(D / U - 1) / R*)),   R* = 15.39

tokens read once (Muennighoff et al., arXiv 2305.16264, equation 5 with its fitted R*, up to about 16 epochs of 100 M to
9 B parameters). The fewer unique tokens there are, the sooner repeating them stops to pay (arXiv 2511.13421); this form
does not have that, and flatters small datasets.
Tensor suffixes: r mixtures, d datasets.
"""

from __future__ import annotations

import numpy as np

from megatron_kaiyuan.research.mixture.law import Matrix

DECAY_EPOCHS = 15.39
# Beyond this the formula was not measured.
LARGEST_EPOCHS = 16.0


def epochs(shares_rd: Matrix, unique_tokens_d: Matrix, budget: float) -> Matrix:
    """How often each dataset is read by a run of `budget` tokens, [r, d]."""
    return shares_rd * budget / unique_tokens_d


def exposures(shares_rd: Matrix, unique_tokens_d: Matrix, budget: float) -> Matrix:
    """Shares of a run's tokens that are worth reading, and last the share that repetition wastes; rows sum to 1.

    Args:
        shares_rd: mixtures, rows that sum to 1.
        unique_tokens_d: tokens that each dataset has.
        budget: tokens of the run.

    Returns:
        [r, d + 1].
    """
    read_rd = epochs(shares_rd, unique_tokens_d, budget)
    beyond_rd = np.maximum(read_rd - 1, 0)
    # Exactly 0 where nothing is repeated: a law then knows that it has seen no repetition.
    wasted_rd = (beyond_rd + DECAY_EPOCHS * np.expm1(-beyond_rd / DECAY_EPOCHS)) * unique_tokens_d / budget
    return np.concatenate((shares_rd - wasted_rd, wasted_rd.sum(-1, keepdims=True)), axis=-1)
