"""A list of runs that take a second each, on a corpus and a phase of their own."""

from __future__ import annotations

from pathlib import Path

from megatron_kaiyuan.research.queue import Run
from tests.train.small_run import TOKENS_PER_STEP, write_corpus, write_recipe

STEPS = 4


def write_inputs(folder: Path) -> Path:
    """A recipe, and held-out corpora `code` and `prose`; the recipe's path."""
    recipe = write_recipe(folder)
    for seed, domain in enumerate(("code", "prose"), 10):
        write_corpus(folder / "held_out" / domain, documents=20, seed=seed)
    return recipe


def make_runs(recipe: Path, count: int, steps: int = STEPS, **labels: object) -> list[Run]:
    """Runs that differ in their seed."""
    held_out = {domain: recipe.parent / "held_out" / domain for domain in ("code", "prose")}
    return [
        Run(
            name=f"seed={seed}",
            recipe=recipe,
            overrides=(f"train.seed={seed}", f"train.train_tokens={steps * TOKENS_PER_STEP}"),
            labels={"seed": seed, **labels},
            held_out=held_out,
        )
        for seed in range(count)
    ]
