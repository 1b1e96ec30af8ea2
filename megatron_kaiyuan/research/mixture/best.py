"""The mixture that a fitted law likes best under bounds, and all that are as good for what the runs can tell.

Tensor suffixes: r mixtures, d datasets, b resampled laws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from megatron_kaiyuan.research.mixture.draw import hold
from megatron_kaiyuan.research.mixture.law import Law, Matrix
from megatron_kaiyuan.research.mixture.uncertainty import Fitted

Features = Callable[[Matrix], Matrix]
_STARTS = 8
_CANDIDATES = 5_000


@dataclass(frozen=True)
class Best:
    """What the laws say of the mixtures within bounds.

    Attributes:
        shares_d: the mixture of the lowest objective.
        objective: its value, in the losses' unit.
        low_d, high_d: smallest and largest share of each dataset over the mixtures that are as good.
        as_good: how many of the candidates are.
        candidates: how many mixtures were compared.
    """

    shares_d: Matrix
    objective: float
    low_d: Matrix
    high_d: Matrix
    as_good: int
    candidates: int


class Objective:
    """The weighted mean of the held-out domains' losses that laws predict for a mixture.

    Args:
        domains: each with its law and uncertainty.
        weights: by domain; they are divided by their sum.
        features: what the laws were fitted on, from shares [r, d]; None: the shares.
    """

    def __init__(
        self, domains: dict[str, Fitted], weights: dict[str, float], features: Features = lambda shares: shares
    ):
        total = sum(weights.values())
        self._domains = [(domains[name], weight / total) for name, weight in weights.items() if weight]
        self._features = features

    def __call__(self, shares_rd: Matrix) -> Matrix:
        """Of mixtures [r, d], by the laws of all runs, [r]."""
        return self._value([(fitted.law, weight) for fitted, weight in self._domains], shares_rd)

    def resampled(self, shares_rd: Matrix) -> Matrix:
        """The same by each resampled set of runs, [b, r]."""
        draws = len(self._domains[0][0].resampled)
        return np.stack(
            [
                self._value([(fitted.resampled[draw], weight) for fitted, weight in self._domains], shares_rd)
                for draw in range(draws)
            ]
        )

    def _value(self, laws: list[tuple[Law, float]], shares_rd: Matrix) -> Matrix:
        features = shares_rd if self._features is None else self._features(shares_rd)
        return np.sum([weight * law(features) for law, weight in laws], axis=0)


def best(objective: Objective, smallest_d: Matrix, largest_d: Matrix, level: float = 0.9, seed: int = 0) -> Best:
    """Search the mixtures whose shares lie within bounds.

    A mixture is as good as the best unless its objective lies above the best's by more of its own standard errors than
    the resampled laws stray anywhere among the candidates, in `level` of the draws: all are compared at once, so that
    the mixture which is truly best is found to be as good in `level` of the cases.

    Args:
        smallest_d, largest_d: bounds of the shares; they must leave a mixture.
    """
    generator = np.random.default_rng(seed)
    candidates_rd = _candidates(generator, smallest_d, largest_d)
    values_r = objective(candidates_rd)
    starts = candidates_rd[np.argsort(values_r)[:_STARTS]]
    found = [_descend(objective, start_d, smallest_d, largest_d) for start_d in starts]
    shares_d = min(found, key=lambda shares: float(objective(shares[None])[0]))
    above_r = values_r - objective(shares_d[None])
    above_br = objective.resampled(candidates_rd) - objective.resampled(shares_d[None])
    errors_r = np.maximum(above_br.std(0), np.finfo(float).tiny)
    astray_b = ((above_br - above_r) / errors_r).max(1)
    good = above_r / errors_r <= np.quantile(astray_b, level)
    as_good_rd = np.vstack((shares_d, candidates_rd[good]))
    return Best(
        shares_d=shares_d,
        objective=float(objective(shares_d[None])[0]),
        low_d=as_good_rd.min(0),
        high_d=as_good_rd.max(0),
        as_good=int(good.sum()),
        candidates=len(candidates_rd),
    )


def _candidates(generator: np.random.Generator, smallest_d: Matrix, largest_d: Matrix) -> Matrix:
    room_d = largest_d - smallest_d
    left = 1 - smallest_d.sum()
    if left <= 0:
        return smallest_d[None]
    # Uneven ones too: the best lies on an edge as a rule.
    strengths = generator.choice([0.2, 1.0, 5.0], _CANDIDATES)
    drawn_rd = np.stack([generator.dirichlet(np.full(len(room_d), strength)) for strength in strengths])
    return np.stack([smallest_d + left * hold(drawn_d, room_d / left) for drawn_d in drawn_rd])


def _descend(objective: Objective, start_d: Matrix, smallest_d: Matrix, largest_d: Matrix) -> Matrix:
    found = minimize(
        lambda shares_d: float(objective(shares_d[None])[0]),
        start_d,
        method="SLSQP",
        bounds=list(zip(smallest_d, largest_d, strict=True)),
        constraints={"type": "eq", "fun": lambda shares_d: shares_d.sum() - 1},
        options={"maxiter": 300, "ftol": 1e-10},
    )
    shares_d = np.clip(found.x, smallest_d, largest_d)
    return shares_d / shares_d.sum() if np.isfinite(shares_d).all() else start_d
