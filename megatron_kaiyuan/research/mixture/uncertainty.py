"""How far a fitted law may be off: laws of resampled runs, and intervals that hold a further run's loss.

Bootstrap of pairs: runs are drawn with replacement, mixture and loss together, and the law is fitted again (Efron and
Tibshirani, 1993). One draw serves all domains, as their losses come from the same runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_kaiyuan.research.mixture.law import Law, Matrix, fit, left_out

RESAMPLES = 200


@dataclass(frozen=True)
class Fitted:
    """A domain's law with what says how far to trust it.

    Attributes:
        law: of all runs.
        resampled: laws of resampled runs.
        residuals_r: what each run's loss was above what a law fitted without it says.
    """

    law: Law
    resampled: tuple[Law, ...]
    residuals_r: Matrix

    @property
    def leave_out_error(self) -> float:
        """Root of the mean squared residual, in the loss's unit."""
        return float(np.sqrt(np.mean(self.residuals_r**2)))

    def interval(self, shares_rd: Matrix, level: float = 0.9, seed: int = 0) -> tuple[Matrix, Matrix]:
        """Bounds [r], [r] that hold the loss of a further run on each mixture, in `level` of the cases.

        A resampled law says where the law may lie, a residual how far a run lies from it.
        """
        drawn = np.random.default_rng(seed).choice(self.residuals_r, (len(self.resampled), len(shares_rd)))
        predicted = np.stack([law(shares_rd) for law in self.resampled]) + drawn
        low_r, high_r = np.quantile(predicted, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low_r, high_r


def fit_domains(
    shares_rd: Matrix, losses: dict[str, Matrix], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Fitted]:
    """A law with its uncertainty for each held-out domain.

    Args:
        shares_rd: each run's mixture.
        losses: by domain, each run's loss on it, [r].
        resamples: how many times the runs are drawn again.
    """
    draws = np.random.default_rng(seed).integers(len(shares_rd), size=(resamples, len(shares_rd)))
    return {domain: _fit_domain(shares_rd, losses_r, draws) for domain, losses_r in losses.items()}


def _fit_domain(shares_rd: Matrix, losses_r: Matrix, draws: Sequence) -> Fitted:
    law = fit(shares_rd, losses_r)
    resampled = tuple(fit(shares_rd[rows], losses_r[rows], law.penalty, start=law) for rows in draws)
    return Fitted(law, resampled, losses_r - left_out(shares_rd, losses_r, law.penalty))
