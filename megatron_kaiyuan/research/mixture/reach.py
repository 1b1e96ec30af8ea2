"""What a fit cannot tell: too few runs, shares that no run had, and a dataset whose worth jumps along its share.

A knowledge-dense dataset is hardly memorised below a critical share and quickly above it, and that share depends on the
network's size (arXiv 2505.18091): a law fitted on one side of the jump says nothing of the other. `jumps` looks for it.
Tensor suffixes: r runs, d datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.law import Matrix, fit

# On RegMix's public runs of 17 datasets, 32 runs (1.9 a dataset) rank .966, 64 (3.8) .980: benchmarks/mixture_law.py.
ENOUGH_RUNS_A_DATASET = 3
_SIMULATIONS = 200
# Parts of a dataset's drawn shares between which the law may break, so that runs lie on both sides.
_PLACES = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Jump:
    """A dataset along whose share one held-out domain's loss changes its slope.

    Attributes:
        share: where.
        below, above: slope of the loss's residual, in its unit a unit of share, on each side.
        p_value: how often runs of the law alone show as large a change.
    """

    dataset: str
    share: float
    below: float
    above: float
    p_value: float


def check_runs(runs: int, datasets: int) -> str | None:
    """A warning where runs are few for what is fitted; None where they are enough.

    Raises:
        UserError: they are fewer than the law has numbers.
    """
    if runs < datasets + 2:
        raise UserError(f"{runs} runs cannot tell a law of {datasets} datasets; give at least {datasets + 2}")
    wanted = ENOUGH_RUNS_A_DATASET * datasets
    return f"{runs} runs for {datasets} datasets: below {wanted} the ranking suffers" if runs < wanted else None


def drawn_range(shares_rd: Matrix) -> tuple[Matrix, Matrix]:
    """The smallest and largest share of each dataset among the runs: the law reaches no further."""
    return shares_rd.min(0), shares_rd.max(0)


def jumps(names: Sequence[str], shares_rd: Matrix, losses_r: Matrix, level: float = 0.01, seed: int = 0) -> list[Jump]:
    """Datasets along whose share the loss bends where the law does not.

    For each dataset and several places, the law's residual is fitted by two straight lines that meet there. The largest
    gain of all is compared with that of runs simulated from the law with its own residuals, law fitted anew: the level
    holds for all datasets together.

    Args:
        names: of the datasets.
        losses_r: of one held-out domain.
        level: how often a law without a jump may be told to have one.
    """
    law = fit(shares_rd, losses_r)
    told_r = law(shares_rd)
    residuals_r = losses_r - told_r
    generator = np.random.default_rng(seed)
    freedom = np.sqrt(len(losses_r) / max(len(losses_r) - shares_rd.shape[1] - 1, 1))
    largest = []
    for _ in range(_SIMULATIONS):
        again_r = told_r + freedom * generator.choice(residuals_r - residuals_r.mean(), len(losses_r))
        largest.append(_gains(shares_rd, again_r - fit(shares_rd, again_r, law.penalty, law)(shares_rd)).max())
    gains_dp = _gains(shares_rd, residuals_r)
    found = []
    for dataset in np.argsort(-gains_dp.max(1)):
        gain = gains_dp[dataset].max()
        p_value = (1 + np.sum(np.array(largest) >= gain)) / (1 + _SIMULATIONS)
        if p_value > level:
            break
        place = float(np.quantile(shares_rd[:, dataset], _PLACES[int(gains_dp[dataset].argmax())]))
        below, change = np.linalg.lstsq(_lines(shares_rd[:, dataset], place), residuals_r, rcond=None)[0][1:]
        found.append(Jump(names[dataset], place, float(below), float(below + change), float(p_value)))
    return found


def _gains(shares_rd: Matrix, residuals_r: Matrix) -> Matrix:
    """By dataset and place, the part of the residuals' squares that a bend there explains beyond a straight line."""
    total = float(np.sum((residuals_r - residuals_r.mean()) ** 2)) or 1.0
    gains = np.zeros((shares_rd.shape[1], len(_PLACES)))
    for dataset, shares_r in enumerate(shares_rd.T):
        straight = _squares(_lines(shares_r, None), residuals_r)
        for index, place in enumerate(np.quantile(shares_r, _PLACES)):
            if shares_r.min() < place < shares_r.max():
                gains[dataset, index] = (straight - _squares(_lines(shares_r, float(place)), residuals_r)) / total
    return gains


def _lines(shares_r: Matrix, place: float | None) -> Matrix:
    columns = [np.ones_like(shares_r), shares_r]
    return np.column_stack(columns if place is None else [*columns, np.maximum(shares_r - place, 0)])


def _squares(columns: Matrix, values_r: Matrix) -> float:
    return float(np.sum((values_r - columns @ np.linalg.lstsq(columns, values_r, rcond=None)[0]) ** 2))
