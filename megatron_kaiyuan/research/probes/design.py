"""The runs of a probe: every window under every seed, alike in all but the documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.speed import flops_per_token
from megatron_kaiyuan.research.probes.parts import split
from megatron_kaiyuan.research.probes.request import MainRunConfig, ProbeConfig
from megatron_kaiyuan.research.probes.window import Window
from megatron_kaiyuan.research.queue import Run
from megatron_kaiyuan.research.task_fields import StudyTasks, make_tasks

# A forward pass is a third of a step's FLOPs.
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Design:
    """What a probe is about to do.

    Attributes:
        steps: of each run.
        tokens: of each run, in those steps.
        tasks: that each run is measured on besides held-out text.
        shared_documents: every seed of a window trains on the same documents.
        flops: of all runs, their measuring included.
        main_flops: of the run that the probes are made for; None where none is named.
    """

    config: ProbeConfig
    windows: list[Window]
    runs: list[Run]
    tasks: StudyTasks
    steps: int
    tokens: int
    shared_documents: bool
    flops: float
    main_flops: float | None


def split_for_seeds(config: ProbeConfig, windows: list[Window], folder: Path) -> list[Window]:
    """The windows of a windows.json cut into a part for each seed, unless seeds are to share documents."""
    if config.share_documents:
        return windows
    return [split(window, config.seeds, folder) if window.listed else window for window in windows]


def make_design(config: ProbeConfig, windows: list[Window], queue: Path = Path("not built")) -> Design:
    """The runs and what they cost. Phases that are not built yet count with the tokens that they will have, about.

    Args:
        queue: folder of the queue, which the tasks are still to be written into.

    Raises:
        UserError: the recipe has several phases, a window has too few tokens, or a task cannot be scored.
    """
    recipe = load_run(config.recipe, ["run_dir=unknown"])
    if len(recipe.data.phases) != 1:
        raise UserError(f"{config.recipe}: data.phases has {len(recipe.data.phases)} phases; a probe's recipe has one")
    steps = _steps(config, windows, recipe)
    tokens = steps * recipe.train.tokens_per_step
    tasks = make_tasks(config, config.held_out, recipe.train.seq_length)
    runs = [
        _run(config, tasks.paths(queue), recipe, tokens, protocol, factor, window, seed)
        for protocol in config.protocols
        for factor in config.factors(protocol)
        for window in windows
        for seed in range(config.seeds)
    ]
    flops = len(runs) * flops_per_token(recipe) * (tokens + _FORWARD * (_measured(config) + tasks.tokens))
    main = None if config.main_run is None else _main_flops(config.main_run)
    return Design(config, windows, runs, tasks, steps, tokens, len(windows[0].parts) == 1, flops, main)


def _run(
    config: ProbeConfig,
    tasks: Mapping[str, Path],
    recipe: RunConfig,
    tokens: int,
    protocol: str,
    factor: float,
    window: Window,
    seed: int,
) -> Run:
    phase = recipe.data.phases[0]
    part = window.parts[seed % len(window.parts)]
    overrides = [
        f"data.phases.0.path={json.dumps(str(part))}",
        f"data.phases.0.peak_lr={phase.peak_lr * factor!r}",
        f"train.seed={recipe.train.seed + seed}",
        f"train.train_tokens={tokens}",
        # The same schedule, however many tokens a window has left.
        f"optimizer.schedule_tokens={tokens}",
    ]
    if phase.final_lr is not None:
        overrides.append(f"data.phases.0.final_lr={phase.final_lr * factor!r}")
    # A rate of its own, as the peak is; the multiples of kinds follow the peak by themselves.
    if (own := recipe.optimizer.decoupled_lr) is not None:
        overrides.append(f"optimizer.decoupled_lr={own * factor!r}")
    return Run(
        name=f"{protocol}/{window.name}/lr_factor={factor:g}/seed={seed}",
        recipe=config.recipe,
        overrides=tuple(overrides),
        labels={
            "protocol": protocol,
            "window": window.name,
            "dataset": window.dataset,
            "quantile": window.quantile,
            "lr_factor": factor,
            "seed": seed,
        },
        held_out=config.held_out,
        held_out_tokens=config.held_out_tokens,
        tasks=tasks,
        tokenizer=config.tokenizer if tasks else None,
    )


def _steps(config: ProbeConfig, windows: Sequence[Window], recipe: RunConfig) -> int:
    """Whole batches that every part holds, or as many as were asked for."""
    tokens_per_step = recipe.train.tokens_per_step
    fewest, place = min((_tokens(part, window.part_tokens), part) for window in windows for part in window.parts)
    wanted = fewest if config.train_tokens is None else config.train_tokens
    if wanted > fewest:
        raise UserError(
            f"train_tokens: {wanted:,} asked for, but {place} holds {fewest:,}; ask for less, or build larger windows"
        )
    if wanted < tokens_per_step:
        raise UserError(
            f"{place}: {wanted:,} tokens are less than the {tokens_per_step:,} of one step; build larger windows, or "
            "make the recipe's batch smaller"
        )
    return wanted // tokens_per_step


def _measured(config: ProbeConfig) -> int:
    """Held-out tokens that each run is measured on."""
    held = [IndexedCorpus(prefix, check=None).num_tokens for prefix in config.held_out.values()]
    limit = config.held_out_tokens
    return sum(held) if limit is None else sum(min(one, limit // len(held)) for one in held)


def _tokens(folder: Path, expected: int) -> int:
    if expected and not folder.exists():
        return expected
    phase = Phase(folder, check=None)
    # The last label of a batch is the token after it; packs have none there.
    return phase.tokens - (phase.manifest.get("packing") is None)


def _main_flops(main: MainRunConfig) -> float:
    run = load_run(main.recipe, [])
    tokens = main.tokens or run.train.train_tokens
    if not tokens:
        raise UserError(f"main_run: {main.recipe} does not say for how many tokens it trains; set main_run.tokens")
    return flops_per_token(run) * tokens
