"""The mixture law: how the loss on one held-out domain follows from the shares of a training mixture.

    L(x) = c + exp(b + w . x)

Ye et al., Data Mixing Laws (arXiv 2403.16952), whose one law a domain this is. Shares of a mixture sum to 1, so that a
number added to every w and taken from b changes nothing: the fit takes the w whose mean is 0.
Tensor suffixes: r runs, d datasets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

Matrix: TypeAlias = "NDArray[np.float64]"

# Where the search for c starts, as parts of the lowest loss: the surface has more than one valley with few runs.
_STARTS = (0.3, 0.6, 0.9, 0.97)
# Penalties that the leave-out error chooses from; losses are in units of their own spread there.
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)
_FOLDS = 8
# exp() of more than this is no loss that a run could have, and would overflow in a search that goes astray.
_LARGEST_EXPONENT = 30.0


@dataclass(frozen=True)
class Law:
    """A fitted law of one held-out domain.

    Attributes:
        floor: c, the loss that no mixture goes below.
        intercept: b.
        slopes_d: w, by dataset; below the others where its text lowers the loss.
        penalty: of the slopes' squares, as chosen by leave-out error.
    """

    floor: float
    intercept: float
    slopes_d: Matrix
    penalty: float

    def __call__(self, shares_rd: Matrix) -> Matrix:
        """Losses [r] of mixtures [r, d], in the units of the losses that were fitted."""
        return self.floor + np.exp(np.minimum(self.intercept + shares_rd @ self.slopes_d, _LARGEST_EXPONENT))

    def of(self, datasets: NDArray[np.bool_]) -> Law:
        """The law of some of the datasets."""
        return replace(self, slopes_d=self.slopes_d[datasets])


def fit(shares_rd: Matrix, losses_r: Matrix, penalty: float | None = None, start: Law | None = None) -> Law:
    """The law that is nearest to the runs in squared error, with its slopes held together.

    A dataset that no run has seen is counted as the worst of the others.

    Args:
        shares_rd: each run's mixture, rows that sum to 1.
        losses_r: each run's loss on the held-out domain.
        penalty: of the squares of the slopes around their mean; None: the one with the least leave-out error.
        start: a law to begin with, from nearly the same runs: one search instead of several.

    Raises:
        ValueError: fewer than three runs, or rows and losses of different number.
    """
    if len(shares_rd) != len(losses_r) or len(losses_r) < 3:
        raise ValueError(f"{len(shares_rd)} mixtures and {len(losses_r)} losses: give three or more of each")
    seen = shares_rd.any(0)
    if not seen.all():
        law = fit(shares_rd[:, seen], losses_r, penalty, start and start.of(seen))
        slopes_d = np.full(len(seen), law.slopes_d.max())
        slopes_d[seen] = law.slopes_d
        return replace(law, slopes_d=slopes_d)
    if penalty is None:
        penalty = min(_PENALTIES, key=lambda each: _leave_out_error(shares_rd, losses_r, each))
    spread = float(losses_r.std()) or 1.0
    lowest = float(losses_r.min())
    starts = [_start(shares_rd, losses_r, part * lowest) for part in _STARTS] if start is None else [_numbers(start)]
    found = [_search(shares_rd, losses_r, lowest, penalty * spread, begin) for begin in starts]
    _, numbers = min(found, key=lambda pair: pair[0])
    slopes_d = numbers[1:]
    return Law(float(numbers[0]), float(slopes_d.mean()), slopes_d - slopes_d.mean(), penalty)


def left_out(shares_rd: Matrix, losses_r: Matrix, penalty: float, folds: int = _FOLDS) -> Matrix:
    """Return each run's loss as predicted by a law that was fitted without it, [r].

    Runs are taken out in turns, one in `folds` at a time, in the order in which they are given.
    """
    told_r = np.empty(len(losses_r))
    for fold in range(min(folds, len(losses_r))):
        out = np.arange(len(losses_r)) % folds == fold
        told_r[out] = fit(shares_rd[~out], losses_r[~out], penalty)(shares_rd[out])
    return told_r


def _leave_out_error(shares_rd: Matrix, losses_r: Matrix, penalty: float) -> float:
    return float(np.mean((left_out(shares_rd, losses_r, penalty) - losses_r) ** 2))


def _numbers(law: Law) -> Matrix:
    # b goes into the slopes: shares sum to 1.
    return np.concatenate(([law.floor], law.intercept + law.slopes_d))


def _start(shares_rd: Matrix, losses_r: Matrix, floor: float) -> Matrix:
    """With c fixed the logarithm of the law is linear."""
    logarithms_r = np.log(losses_r - floor)
    centre = logarithms_r.mean()
    square = shares_rd.T @ shares_rd + 1e-3 * np.eye(shares_rd.shape[1])
    return np.concatenate(([floor], centre + np.linalg.solve(square, shares_rd.T @ (logarithms_r - centre))))


def _search(shares_rd: Matrix, losses_r: Matrix, lowest: float, penalty: float, start: Matrix) -> tuple[float, Matrix]:
    datasets = shares_rd.shape[1]
    centring = penalty * (np.eye(datasets) - 1 / datasets)

    def exponentials(numbers: Matrix) -> Matrix:
        return np.exp(np.minimum(shares_rd @ numbers[1:], _LARGEST_EXPONENT))

    def errors(numbers: Matrix) -> Matrix:
        return np.concatenate((numbers[0] + exponentials(numbers) - losses_r, centring @ numbers[1:]))

    def slopes(numbers: Matrix) -> Matrix:
        of_runs = np.column_stack((np.ones(len(losses_r)), exponentials(numbers)[:, None] * shares_rd))
        return np.vstack((of_runs, np.column_stack((np.zeros(datasets), centring))))

    floor_bounds = min(0.0, lowest), lowest
    bounds = np.full((2, datasets + 1), [[-np.inf], [np.inf]])
    bounds[:, 0] = floor_bounds
    start = np.clip(start, bounds[0], bounds[1])
    # Losses that are flat leave a valley between c and b along which nothing changes: no need to walk all of it.
    found = least_squares(
        errors, start, slopes, bounds=(bounds[0], bounds[1]), x_scale="jac", ftol=1e-6, xtol=1e-6, max_nfev=200
    )
    return float(found.cost), found.x
