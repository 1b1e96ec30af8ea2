"""From the runs' losses to the mixture of the target: laws, best shares, and what they cannot tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.best import Best, Objective, best
from megatron_kaiyuan.research.mixture.exposure import epochs, exposures
from megatron_kaiyuan.research.mixture.law import Matrix
from megatron_kaiyuan.research.mixture.reach import Jump, check_jumps, check_runs, drawn_range, jumps
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.mixture.uncertainty import Fitted, fit_domains


@dataclass(frozen=True)
class MixtureAnswer:
    """What a study found.

    Attributes:
        names: of the corpora, the order of all shares.
        tokens_d: tokens that each has.
        shares_rd: of the runs.
        losses: bits per byte of each run, by domain, [r].
        fitted: the laws.
        best: the mixture for the target.
        epochs_d: how often the target reads each corpus.
        natural_d: shares of the corpora as they are, held to the bounds.
        gain: objective of `natural_d` less that of the best, and its interval.
        bounds: smallest and largest share that were allowed to each.
        warnings: what the fit cannot tell.
        confirmed_s: measured, not predicted by the law: objective of runs on `natural_d` less that of runs on the best
            mixture, in pairs of one initialisation each, [seeds].
    """

    names: list[str]
    tokens_d: Matrix
    shares_rd: Matrix
    losses: dict[str, Matrix]
    fitted: dict[str, Fitted]
    best: Best
    epochs_d: Matrix
    natural_d: Matrix
    gain: tuple[float, float, float]
    bounds: tuple[Matrix, Matrix]
    warnings: list[str]
    confirmed_s: Matrix = field(default_factory=lambda: np.empty(0))


def answer(
    recipe: MixRecipe, names: list[str], tokens_d: Matrix, shares_rd: Matrix, losses: dict[str, Matrix]
) -> MixtureAnswer:
    """Fit the law of each domain and choose the mixture of the target; no training.

    Repetition is that of the target in the small runs too (`_build`), so the law is of what the tokens are worth there.

    Raises:
        UserError: fewer runs than the law has numbers.
    """
    warnings = [warning] if (warning := check_runs(len(shares_rd), len(names))) else []

    def worth(shares_rd: Matrix) -> Matrix:
        return exposures(shares_rd, tokens_d, recipe.target_tokens)

    fitted = fit_domains(worth(shares_rd), losses, seed=recipe.seed)
    objective = Objective(fitted, recipe.weights, worth)
    low_d, high_d = _bounds(recipe, names, tokens_d, shares_rd)
    found = best(objective, low_d, high_d, recipe.level, recipe.seed)
    natural_d = shares_rd[0]
    gains_b = objective.resampled(natural_d[None])[:, 0] - objective.resampled(found.shares_d[None])[:, 0]
    gain = float(objective(natural_d[None])[0] - found.objective)
    bottom, top = np.quantile(gains_b, [(1 - recipe.level) / 2, (1 + recipe.level) / 2])
    for domain, values_r in losses.items():
        warnings += [_jump_warning(domain, jump) for jump in jumps(names, shares_rd, values_r)]
    if warning := check_jumps(len(shares_rd)):
        warnings.append(warning)
    warnings += _edge_warnings(names, found.shares_d, low_d, high_d, largest_shares(recipe, names, tokens_d))
    return MixtureAnswer(
        names,
        tokens_d,
        shares_rd,
        losses,
        fitted,
        found,
        epochs(found.shares_d[None], tokens_d, recipe.target_tokens)[0],
        natural_d,
        (gain, float(bottom), float(top)),
        (low_d, high_d),
        warnings,
    )


def largest_shares(recipe: MixRecipe, names: list[str], tokens_d: Matrix) -> Matrix:
    """The largest share of each corpus: what the recipe allows, and what its tokens give in `max_repeat` passes."""
    allowed_d = np.array([recipe.largest.get(name, 1.0) for name in names])
    return np.minimum(allowed_d, recipe.max_repeat * tokens_d / recipe.target_tokens)


def _bounds(recipe: MixRecipe, names: list[str], tokens_d: Matrix, shares_rd: Matrix) -> tuple[Matrix, Matrix]:
    """Where the best is looked for: never where no run was."""
    drawn_low_d, drawn_high_d = drawn_range(shares_rd)
    low_d = np.maximum([recipe.smallest.get(name, 0.0) for name in names], drawn_low_d)
    high_d = np.minimum(largest_shares(recipe, names, tokens_d), drawn_high_d)
    if low_d.sum() > 1 or high_d.sum() < 1 or (low_d > high_d).any():
        raise UserError("smallest: no mixture of the runs has such shares; lower them, or raise runs")
    return low_d, high_d


def _jump_warning(domain: str, jump: Jump) -> str:
    return (
        f"{domain}: the loss falls faster from a share of {jump.share:.3f} of {jump.dataset} on (slope "
        f"{jump.below:.2f} below, {jump.above:.2f} above, p = {jump.p_value:.3f}): what is dense in knowledge is "
        "learned from a share on that depends on the network's size (arXiv 2505.18091), so the law is wrong there, and "
        "the share is not to be taken from small runs"
    )


def _edge_warnings(names: list[str], shares_d: Matrix, low_d: Matrix, high_d: Matrix, allowed_d: Matrix) -> list[str]:
    """Corpora whose best share lies at the end of what was drawn, not of what is allowed."""
    return [
        f"{name}: its best share is the largest that a run had, {high:.3f}; draw more runs to look beyond"
        for name, share, high, allowed in zip(names, shares_d, high_d, allowed_d, strict=True)
        if share > high - 1e-3 and high < allowed - 1e-3
    ]
