"""From a mix recipe to an answer: draw mixtures, order their text, train on each, fit the law, choose.

Every stage keeps what it made in the output folder, so that the same command goes on where it was stopped, and more
`runs` train only those that are missing: the draws of a seed begin alike, however many there are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.best import Best, Objective, best
from megatron_kaiyuan.research.mixture.draw import draw
from megatron_kaiyuan.research.mixture.exposure import epochs, exposures
from megatron_kaiyuan.research.mixture.law import Array
from megatron_kaiyuan.research.mixture.reach import Jump, check_runs, drawn_range, jumps
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.mixture.uncertainty import Fitted, fit_domains
from megatron_kaiyuan.research.queue import Run, run_all
from megatron_kaiyuan.research.queue.request import BITS_PER_BYTE

# Parts of a corpus are cut at documents, so that a small run may read one a little more often than the large run would.
_SLACK = 1.5


@dataclass(frozen=True)
class Answer:
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
    """

    names: list[str]
    tokens_d: Array
    shares_rd: Array
    losses: dict[str, Array]
    fitted: dict[str, Fitted]
    best: Best
    epochs_d: Array
    natural_d: Array
    gain: tuple[float, float, float]
    bounds: tuple[Array, Array]
    warnings: list[str]


def study(recipe: MixRecipe, folder: Path, slots: int | None = None) -> Answer:
    """Train what is missing, and answer.

    Args:
        folder: a claimed folder of this recipe.
        slots: runs at once; None: what this machine has.

    Raises:
        UserError: a corpus is missing, the bounds leave no mixture, or a run failed.
    """
    names, tokens_d = corpus_tokens(recipe)
    shares_rd = drawn(recipe, names, tokens_d)
    check_runs(len(shares_rd), len(names))
    phases = [_build(recipe, names, shares_d, folder / "phases", at) for at, shares_d in enumerate(shares_rd)]
    rows = run_all(folder / "queue", [_run(recipe, phase, at) for at, phase in enumerate(phases)], slots)
    losses = {domain: np.array([float(row[f"{BITS_PER_BYTE}{domain}"]) for row in rows]) for domain in recipe.held_out}
    return answer(recipe, names, tokens_d, shares_rd, losses)


def corpus_tokens(recipe: MixRecipe) -> tuple[list[str], Array]:
    """Names of the corpora, and the tokens of each."""
    names = list(recipe.corpora)
    tokens_d = np.array([float(IndexedCorpus(recipe.corpora[name]).num_tokens) for name in names])
    if not tokens_d.all():
        raise UserError(f"corpora.{names[int(tokens_d.argmin())]}: holds no token; take it out")
    return names, tokens_d


def drawn(recipe: MixRecipe, names: list[str], tokens_d: Array) -> Array:
    """The mixtures of the small runs."""
    return draw(names, tokens_d, _largest(recipe, names, tokens_d), recipe.runs, recipe.seed)


def answer(recipe: MixRecipe, names: list[str], tokens_d: Array, shares_rd: Array, losses: dict[str, Array]) -> Answer:
    """Fit the law of each domain and choose the mixture of the target; no training.

    Repetition is that of the target in the small runs too (`_build`), so the law is of what the tokens are worth there.

    Raises:
        UserError: fewer runs than the law has numbers.
    """
    warnings = [warning] if (warning := check_runs(len(shares_rd), len(names))) else []

    def worth(shares_rd: Array) -> Array:
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
    warnings += _edge_warnings(names, found.shares_d, low_d, high_d, _largest(recipe, names, tokens_d))
    return Answer(
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


def _largest(recipe: MixRecipe, names: list[str], tokens_d: Array) -> Array:
    """The largest share of each corpus: what the recipe allows, and what its tokens give in `max_repeat` passes."""
    allowed_d = np.array([recipe.largest.get(name, 1.0) for name in names])
    return np.minimum(allowed_d, recipe.max_repeat * tokens_d / recipe.target_tokens)


def _bounds(recipe: MixRecipe, names: list[str], tokens_d: Array, shares_rd: Array) -> tuple[Array, Array]:
    """Where the best is looked for: never where no run was."""
    drawn_low_d, drawn_high_d = drawn_range(shares_rd)
    low_d = np.maximum([recipe.smallest.get(name, 0.0) for name in names], drawn_low_d)
    high_d = np.minimum(_largest(recipe, names, tokens_d), drawn_high_d)
    if low_d.sum() > 1 or high_d.sum() < 1 or (low_d > high_d).any():
        raise UserError("smallest: no mixture of the runs has such shares; lower them, or raise runs")
    return low_d, high_d


def _build(recipe: MixRecipe, names: list[str], shares_d: Array, folder: Path, at: int) -> Path:
    """Order the text of one small run.

    Of every corpus the same part is kept as the small run is of the target, so that it is read as often as there.
    """
    part = Fraction(recipe.tokens, recipe.target_tokens)
    # The builder wants shares that sum to 1 within 1e-6; whole millionths, the rest to the largest.
    millionths = np.round(shares_d * 1e6).astype(int)
    millionths[millionths.argmax()] += 10**6 - millionths.sum()
    datasets = [
        DatasetRecipe(corpus=name, share=count / 1e6, keep=f"random {part}", max_repeat=_SLACK * recipe.max_repeat)
        for name, count in zip(names, millionths.tolist(), strict=True)
        if count
    ]
    phase = PhaseRecipe(
        name=f"mixture_{at:03d}", order="shuffle", tokens=recipe.tokens, seed=recipe.seed, datasets=datasets
    )
    corpora = {name: recipe.corpora[name] for name in names}
    return build_phase(phase, corpora, folder / phase.name, os.cpu_count() or 1).folder


def _run(recipe: MixRecipe, phase: Path, at: int) -> Run:
    return Run(
        name=f"mixture {at}",
        recipe=recipe.recipe,
        overrides=(f"data.phases[0].path={phase}",),
        labels={"mixture": at},
        held_out=dict(recipe.held_out),
    )


def _jump_warning(domain: str, jump: Jump) -> str:
    return (
        f"{domain}: the loss bends along the share of {jump.dataset}, near {jump.share:.3f} (p = {jump.p_value:.3f}): "
        "what is dense in knowledge is learned above a share that depends on the network's size (arXiv 2505.18091), so "
        "its share is not to be taken from small runs"
    )


def _edge_warnings(names: list[str], shares_d: Array, low_d: Array, high_d: Array, allowed_d: Array) -> list[str]:
    """Corpora whose best share lies at the end of what was drawn, not of what is allowed."""
    return [
        f"{name}: its best share is the largest that a run had, {high:.3f}; draw more runs to look beyond"
        for name, share, high, allowed in zip(names, shares_d, high_d, allowed_d, strict=True)
        if share > high - 1e-3 and high < allowed - 1e-3
    ]
