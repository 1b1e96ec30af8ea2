"""From a mix recipe to an answer: draw mixtures, order their text, train on each, fit the law, choose.

Every stage keeps what it made in the output folder, so that the same command continues where it was stopped, and more
`runs` train only those that are missing: the draws of a seed begin alike, however many there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import DatasetRecipe, PhaseRecipe
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.outputs import identity_of
from megatron_kaiyuan.research.mixture.answer import MixtureAnswer, answer, largest_shares
from megatron_kaiyuan.research.mixture.draw import draw
from megatron_kaiyuan.research.mixture.law import Matrix
from megatron_kaiyuan.research.mixture.reach import check_runs
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.queue import Run, run_all
from megatron_kaiyuan.research.queue.request import BITS_PER_BYTE
from megatron_kaiyuan.research.queue.slurm import Array
from megatron_kaiyuan.research.task_fields import StudyTasks, make_tasks

Train: TypeAlias = Callable[[list[Run]], list[dict[str, Any]]]

# Parts of a corpus are cut at documents, so that a small run may read one a little more often than the large run would.
_SLACK = 1.5


def study(recipe: MixRecipe, folder: Path, slots: int | None = None, array: Array | None = None) -> MixtureAnswer:
    """Train what is missing, and answer.

    Args:
        folder: a claimed folder of this recipe.
        slots, array: see `run_all`.

    Raises:
        UserError: a corpus is missing, the bounds leave no mixture, or a run failed.
    """
    names, tokens_d = corpus_tokens(recipe)
    shares_rd = drawn(recipe, names, tokens_d)
    check_runs(len(shares_rd), len(names))
    phases = [
        _build(recipe, names, shares_d, folder / "phases" / f"mixture_{at:03d}")
        for at, shares_d in enumerate(shares_rd)
    ]
    tasks = mix_tasks(recipe)
    tasks.write(folder / "queue")
    make_run = partial(_run, recipe, tasks.paths(folder / "queue"))
    runs = [make_run(phase, f"mixture {at}", recipe.seed) for at, phase in enumerate(phases)]
    train = partial(run_all, folder / "queue", slots=slots, array=array)
    found = answer(recipe, names, tokens_d, shares_rd, _losses(recipe, train(runs)))
    return replace(found, confirmed_s=_confirm(recipe, found, phases[0], folder, make_run, train))


def _confirm(
    recipe: MixRecipe,
    found: MixtureAnswer,
    natural: Path,
    folder: Path,
    make_run: Callable[[Path, str, int], Run],
    train: Train,
) -> Matrix:
    """Train on the best mixture and on the corpora's own shares, in pairs: a law flatters the best that it finds."""
    if not recipe.confirm:
        return np.empty(0)
    shares_d = found.best.shares_d
    # Named by its shares: another answer, after more runs, is another phase.
    name = f"best_{identity_of(np.round(shares_d, 6).tolist())[:8]}"
    chosen = _build(recipe, found.names, shares_d, folder / "phases" / name)
    runs = [
        make_run(phase, f"{which}, seed {seed}", seed)
        for seed in range(recipe.seed + 1, recipe.seed + 1 + recipe.confirm)
        for which, phase in (("own shares", natural), ("best mixture", chosen))
    ]
    losses = _losses(recipe, train(runs))
    total = sum(recipe.weights.values())
    values = np.sum([weight / total * losses[domain] for domain, weight in recipe.weights.items()], axis=0)
    return values[0::2] - values[1::2]


def _losses(recipe: MixRecipe, rows: list[dict[str, Any]]) -> dict[str, Matrix]:
    return {domain: np.array([float(row[f"{BITS_PER_BYTE}{domain}"]) for row in rows]) for domain in recipe.measures}


def corpus_tokens(recipe: MixRecipe) -> tuple[list[str], Matrix]:
    """Names of the corpora, and the tokens of each."""
    names = list(recipe.corpora)
    tokens_d = np.array([float(IndexedCorpus(recipe.corpora[name]).num_tokens) for name in names])
    if not tokens_d.all():
        raise UserError(f"corpora.{names[int(tokens_d.argmin())]}: holds no token; take it out")
    return names, tokens_d


def mix_tasks(recipe: MixRecipe) -> StudyTasks:
    """The tasks of a study, ready to be measured."""
    return make_tasks(recipe, recipe.held_out, load_run(recipe.recipe, ["run_dir=unknown"]).train.seq_length)


def drawn(recipe: MixRecipe, names: list[str], tokens_d: Matrix) -> Matrix:
    """The mixtures of the small runs."""
    return draw(names, tokens_d, largest_shares(recipe, names, tokens_d), recipe.runs, recipe.seed)


def _build(recipe: MixRecipe, names: list[str], shares_d: Matrix, folder: Path) -> Path:
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
    phase = PhaseRecipe(name=folder.name, order="shuffle", tokens=recipe.tokens, seed=recipe.seed, datasets=datasets)
    corpora = {name: recipe.corpora[name] for name in names}
    return build_phase(phase, corpora, folder, os.cpu_count() or 1).folder


def _run(recipe: MixRecipe, tasks: Mapping[str, Path], phase: Path, name: str, seed: int) -> Run:
    return Run(
        name=name,
        recipe=recipe.recipe,
        overrides=(f"data.phases[0].path={json.dumps(str(phase))}", f"train.seed={seed}"),
        labels={"phase": phase.name, "seed": seed},
        held_out=dict(recipe.held_out),
        tasks=tasks,
        tokenizer=recipe.tokenizer if tasks else None,
    )
