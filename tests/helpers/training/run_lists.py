"""A list of runs that take a second each, and workers that begin at once: forks of a process that has imported all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from megatron_kaiyuan.research.queue.request import Run, write_list
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_run import TOKENS_PER_STEP, write_corpus, write_recipe

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


Whole = dict[str, tuple[int, int, int]]


def whole_runs(folder: Path) -> Whole:
    """What is written once and never again: by fingerprint, the result's file and the length of the record."""
    found = {}
    for path in folder.glob("runs/*/result.json"):
        state = path.stat()
        found[path.parent.name] = state.st_ino, state.st_mtime_ns, os.path.getsize(path.with_name("metrics.jsonl"))
    return found


def require_all_whole(folder: Path, runs: list[Run], undisturbed: list[dict], before: Whole) -> None:
    done = work(folder, runs)
    assert done["code"] == 0 and not done["missing"]
    # To the last bit, however often a run was taken up again.
    assert without_times(done["rows"]) == undisturbed
    after = whole_runs(folder)
    assert len(after) == len(runs) == len(list((folder / "runs").glob("[!.]*")))
    assert before.items() <= after.items()
    left = [path for path in (folder / "runs").rglob("*") if path.name.endswith((".tmp", ".lock")) or path.is_dir()]
    assert sorted(left) == sorted(folder / "runs" / name for name in after)
