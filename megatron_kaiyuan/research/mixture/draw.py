"""Mixtures to train small runs on: drawn around what the datasets have, within what each may give.

As RegMix draws (arXiv 2407.01492): Dirichlet round the datasets' shares of all tokens, at strengths from very uneven to
close to these shares.
"""

from __future__ import annotations

import numpy as np

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.law import Matrix

_STRENGTHS = (0.1, 5.0)
# A share below this is no dataset of a mixture: it is left out, and the others grow.
_LEAST_SHARE = 1e-3
_TRIES = 1000


def draw(names: list[str], tokens_d: Matrix, largest_d: Matrix, runs: int, seed: int = 0) -> Matrix:
    """Mixtures [runs, d], the first of them the datasets' own shares held to the bounds.

    Args:
        names: of the datasets, for the error.
        tokens_d: tokens that each dataset has.
        largest_d: the largest share that each may give, at most 1.
        runs: how many.
        seed: of the draw.

    Raises:
        UserError: the bounds leave no mixture, or none is met in many draws.
    """
    if largest_d.sum() < 1:
        shown = ", ".join(f"{name} {share:.3g}" for name, share in zip(names, largest_d, strict=True))
        raise UserError(f"the largest shares ({shown}) sum to less than 1: allow more repetition, or a smaller budget")
    natural_d = hold(tokens_d / tokens_d.sum(), largest_d)
    generator = np.random.default_rng(seed)
    return np.stack([natural_d] + [_one(generator, natural_d, largest_d) for _ in range(runs - 1)])


def hold(shares_d: Matrix, largest_d: Matrix) -> Matrix:
    """Shares that sum to 1 within the bounds: what a bound cuts off goes to the others, in proportion.

    A share of 0 stays 0 unless the others cannot take all.
    """
    held_d = shares_d / shares_d.sum()
    full = held_d >= largest_d
    while True:
        held_d = np.where(full, largest_d, held_d)
        free = ~full & (shares_d > 0)
        missing = 1 - held_d[full].sum()
        if not free.any():
            room_d = largest_d - held_d
            return held_d + room_d * ((1 - held_d.sum()) / room_d.sum() if room_d.sum() > 0 else 0)
        held_d = np.where(free, shares_d * missing / shares_d[free].sum(), held_d)
        if not (held_d[free] > largest_d[free]).any():
            return held_d
        full = full | (held_d >= largest_d)


def _one(generator: np.random.Generator, natural_d: Matrix, largest_d: Matrix) -> Matrix:
    for _ in range(_TRIES):
        strength = np.exp(generator.uniform(*np.log(_STRENGTHS)))
        drawn_d = generator.dirichlet(np.maximum(natural_d * len(natural_d) * strength, 1e-3))
        drawn_d = np.where(drawn_d < _LEAST_SHARE, 0.0, drawn_d)
        if drawn_d.sum() > 0 and (drawn_d / drawn_d.sum() <= largest_d).all():
            return drawn_d / drawn_d.sum()
    # Bounds this narrow leave a small region round one mixture; a draw that they cut lies on its edge.
    return hold(np.maximum(drawn_d, _LEAST_SHARE), largest_d)
