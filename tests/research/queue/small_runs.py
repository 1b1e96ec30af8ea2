"""A list of runs that take a second each, and workers that begin at once: forks of a process that has imported all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_kaiyuan.research.queue.request import Run, write_list
from tests.rank_server import run
from tests.train.small_run import TOKENS_PER_STEP, write_corpus, write_recipe

STEPS = 4
WORKER = ("-m", "megatron_kaiyuan.research.queue.worker")


def write_inputs(folder: Path) -> Path:
    """A recipe, and held-out corpora `code` and `prose`; the recipe's path."""
    recipe = write_recipe(folder)
    for seed, domain in enumerate(("code", "prose"), 10):
        write_corpus(folder / "held_out" / domain, documents=20, seed=seed)
    return recipe


def make_run(recipe: Path, name: str, *overrides: str, steps: int = STEPS, **labels: object) -> Run:
    held_out = {domain: recipe.parent / "held_out" / domain for domain in ("code", "prose")}
    tokens = f"train.train_tokens={steps * TOKENS_PER_STEP}"
    return Run(name, recipe, (tokens, *overrides), labels, held_out)


def make_runs(recipe: Path, count: int, *overrides: str, steps: int = STEPS) -> list[Run]:
    """Runs that differ in their seed."""
    return [
        make_run(recipe, f"seed={seed}", f"train.seed={seed}", *overrides, steps=steps, seed=seed)
        for seed in range(count)
    ]


def work(folder: Path, runs: list[Run], *options: object) -> dict[str, Any]:
    """What a worker says that was given these runs, and how it ended: `code`, `errors`."""
    done = run(1, [*WORKER, write_list(folder, runs), *options])
    assert done.stdout, done.stderr[-3000:]
    return {**json.loads(done.stdout), "code": done.returncode, "errors": done.stderr}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be equal whenever and however often a run was begun."""
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
