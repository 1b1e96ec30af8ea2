"""What a share of a mixture is worth when its dataset has to be repeated for it.

D tokens read from U unique ones are worth

    D' = U + U R* (1 - exp(-(D / U - 1) / R*)),   R* = 15.39

tokens read once (Muennighoff et al., arXiv 2305.16264, equation 5 with its fitted R*, up to about 16 epochs of 100 M to
9 B parameters). That data is worth less the sooner the smaller U is (arXiv 2511.13421), which this form does not have: it
flatters small datasets.
Tensor suffixes: r mixtures, d datasets.
"""

from __future__ import annotations

import numpy as np

from megatron_kaiyuan.research.mixture.law import Array

DECAY_EPOCHS = 15.39
# Beyond this the formula was not measured.
LARGEST_EPOCHS = 16.0


def epochs(shares_rd: Array, unique_tokens_d: Array, budget: float) -> Array:
    """How often each dataset is read by a run of `budget` tokens, [r, d]."""
    return shares_rd * budget / unique_tokens_d


def exposures(shares_rd: Array, unique_tokens_d: Array, budget: float) -> Array:
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
    worth_rd = np.minimum(read_rd, 1) + DECAY_EPOCHS * -np.expm1(-beyond_rd / DECAY_EPOCHS)
    worth_shares_rd = worth_rd * unique_tokens_d / budget
    wasted_r1 = np.maximum(shares_rd - worth_shares_rd, 0).sum(-1, keepdims=True)
    return np.concatenate((worth_shares_rd, wasted_r1), axis=-1)
