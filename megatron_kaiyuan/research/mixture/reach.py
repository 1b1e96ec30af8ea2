"""What a fit cannot tell: too few runs, shares that no run had, and a dataset whose worth jumps along its share.

A knowledge-dense dataset is hardly memorised below a critical share and quickly above it, and that share depends on the
network's size (arXiv 2505.18091): a law fitted on one side of the jump says nothing about the other. `jumps` looks for
it. Tensor suffixes: r runs, d datasets, k knots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.law import Law, Matrix, fit

# On RegMix's public runs of 17 datasets, 32 runs (1.9 a dataset) rank .966, 64 (3.8) .980: benchmarks/mixture_law.py.
ENOUGH_RUNS_A_DATASET = 3
# Below, a convex curve with a bend passes through almost any losses.
FEWEST_RUNS_FOR_JUMPS = 10
# Below, most jumps are missed: benchmarks/jump_alarms.py.
ENOUGH_RUNS_FOR_JUMPS = 24
_SIMULATIONS = 200
# Quantiles of a dataset's drawn shares at which the curve may bend; it may jump where runs lie on both sides.
_KNOTS = np.arange(1, 10) / 10
_FEWEST_BELOW, _FEWEST_ABOVE = 3, 2


@dataclass(frozen=True)
class Jump:
    """A dataset from some share of which one held-out domain's loss falls faster than below it.

    Attributes:
        share: from where on.
        below, above: slope of the fitted line next to it, in the loss's unit a unit of share.
        p_value: how often runs without a jump show as large a change.
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


def check_jumps(runs: int) -> str | None:
    """A warning where runs are too few to see a jump; None where they are enough."""
    if runs >= ENOUGH_RUNS_FOR_JUMPS:
        return None
    return (
        f"{runs} runs: below {ENOUGH_RUNS_FOR_JUMPS} a corpus whose knowledge is learned only from some share on is "
        "mostly not noticed"
    )


def drawn_range(shares_rd: Matrix) -> tuple[Matrix, Matrix]:
    """The smallest and largest share of each dataset among the runs: the law reaches no further."""
    return shares_rd.min(0), shares_rd.max(0)


def jumps(names: Sequence[str], shares_rd: Matrix, losses_r: Matrix, level: float = 0.01, seed: int = 0) -> list[Jump]:
    """Datasets from some share of which the loss falls faster than below it.

    More of a dataset helps, or hurts, less and less: the law and power laws alike are convex along a share. Knowledge
    that is learned from some share on bends the loss the other way. For each dataset, the losses along its share (what
    the law says of the other datasets taken out) are fitted by a convex piecewise line, then by one that may bend once
    the other way. The largest part of the squares that the bend explains is compared with that of runs simulated from
    the convex line with its own residuals, the law fitted again: the level holds for all datasets together. The law's
    form does not matter beyond that, so that a convex curve that it fits badly is not taken for a jump.

    Args:
        names: of the datasets.
        losses_r: of one held-out domain.
        level: how often runs without a jump may be said to have one.

    Returns:
        The jumps, the clearest first; none where there are fewer than `FEWEST_RUNS_FOR_JUMPS` runs.
    """
    if len(losses_r) < FEWEST_RUNS_FOR_JUMPS:
        return []
    law = fit(shares_rd, losses_r)
    curves = [_curve(shares_rd, losses_r, law, dataset) for dataset in range(len(names))]
    order = sorted(range(len(names)), key=lambda dataset: -curves[dataset].gain)
    null, found = _Null(shares_rd, losses_r, law, curves[order[0]], seed), []
    for dataset in order:
        curve = curves[dataset]
        # A dataset that gives way to the one that jumps has its mirror image: the loss is higher above the bend.
        if curve.fall > 0:
            p_value = null.p_value(curve.gain, level)
            if p_value > level:
                break
            found.append(Jump(names[dataset], curve.share, curve.below, curve.above, p_value))
    return found


@dataclass(frozen=True)
class _Curve:
    """The losses along one dataset's share.

    Attributes:
        gain: part of the squares about the convex line that a bend the other way explains.
        fall: how much lower the losses are above the bend than below it, on average.
        share, below, above: see `Jump`.
        residuals_r: of the convex line.
    """

    gain: float
    fall: float
    share: float
    below: float
    above: float
    residuals_r: Matrix


class _Null:
    """Gains of runs that have no jump, simulated as far as a question needs them."""

    def __init__(self, shares_rd: Matrix, losses_r: Matrix, law: Law, curve: _Curve, seed: int):
        residuals_r = curve.residuals_r
        self._gains: list[float] = []
        self._simulate = self._simulated(shares_rd, losses_r - residuals_r, residuals_r, law, seed)

    def p_value(self, gain: float, level: float) -> float:
        """How often a simulated gain is as large; above `level`, only so much is sure."""
        while len(self._gains) < _SIMULATIONS and self._share(gain) <= level:
            self._gains.append(next(self._simulate))
        return self._share(gain)

    def _share(self, gain: float) -> float:
        return (1 + sum(one >= gain for one in self._gains)) / (1 + _SIMULATIONS)

    @staticmethod
    def _simulated(shares_rd: Matrix, convex_r: Matrix, residuals_r: Matrix, law: Law, seed: int) -> Iterator[float]:
        generator = np.random.default_rng(seed)
        while True:
            losses_r = convex_r + generator.choice(residuals_r, len(residuals_r))
            again = fit(shares_rd, losses_r, law.penalty, law)
            yield max(_curve(shares_rd, losses_r, again, dataset).gain for dataset in range(shares_rd.shape[1]))


def _curve(shares_rd: Matrix, losses_r: Matrix, law: Law, dataset: int) -> _Curve:
    shares_r = shares_rd[:, dataset]
    values_r = losses_r - law(shares_rd) + law(_along(shares_rd, dataset))
    knots_k = np.unique(np.quantile(shares_r, _KNOTS))
    hinges_rk = np.maximum(shares_r[:, None] - knots_k, 0)
    # A coefficient of either sign is the difference of two that are not negative.
    line_r4 = np.column_stack([np.ones_like(shares_r), -np.ones_like(shares_r), shares_r, -shares_r])
    convex = np.hstack([line_r4, hinges_rk])
    coefficients, distance = nnls(convex, values_r)
    best = _Curve(0.0, 0.0, float("nan"), 0.0, 0.0, values_r - convex @ coefficients)
    for at, knot in enumerate(knots_k):
        if np.sum(shares_r <= knot) < _FEWEST_BELOW or np.sum(shares_r > knot) < _FEWEST_ABOVE:
            continue
        bent, other = nnls(np.hstack([convex, -hinges_rk[:, at : at + 1]]), values_r)
        gain = 1 - (other / distance) ** 2 if distance > 0 else 0.0
        if gain > best.gain:
            below = bent[2] - bent[3] + bent[4 : 4 + at].sum()
            above = below + bent[4 + at] - bent[-1]
            fall = values_r[shares_r <= knot].mean() - values_r[shares_r > knot].mean()
            best = _Curve(gain, float(fall), float(knot), float(below), float(above), best.residuals_r)
    return best


def _along(shares_rd: Matrix, dataset: int) -> Matrix:
    """The same shares of one dataset, and the others in the proportions that they have on average."""
    others_d = shares_rd.mean(0)
    others_d[dataset] = 0
    shares_r = shares_rd[:, dataset]
    along_rd = (1 - shares_r)[:, None] * others_d / others_d.sum()
    along_rd[:, dataset] = shares_r
    return along_rd
