"""What failures and saves cost a run, and how often to save.

Failures come at random at a constant rate (J. T. Daly, A higher order estimate of the optimum checkpoint interval for
restart dumps, Future Generation Computer Systems 22, 2006). Each one costs the steps since the newest whole checkpoint
and a restart; each save stops the training for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_kaiyuan.planning.memory import checkpoint_copy
from megatron_kaiyuan.planning.parameters import distinct_stages
from megatron_kaiyuan.planning.plan import LayoutPlan, Plan

_HOUR = 3600
# Assumed where nothing is measured (ours): what the shared folder takes in all, copies from a device to its host, and
# from a failure to the first step again: to notice it, to be started, to build and to load.
STORE_GB_PER_SECOND, _COPY_GB_PER_SECOND, RESTART_MINUTES = 2.0, 4.0, 10.0


@dataclass(frozen=True)
class Assumed:
    """What the user may know better; None: the device's figure.

    Attributes:
        mtbf_hours: between failures of one device, with its share of node and network.
        restart_minutes: from a failure to the first step again.
        save_seconds: from a save's start until the checkpoint is whole.
    """

    mtbf_hours: float | None = None
    restart_minutes: float = RESTART_MINUTES
    save_seconds: float | None = None


@dataclass(frozen=True)
class Saves:
    """One save, in seconds.

    Attributes:
        stall: training stands still.
        write: from its start until the checkpoint is whole.
    """

    stall: float
    write: float


@dataclass(frozen=True)
class Losses:
    """What a layout loses.

    Attributes:
        mtbf_seconds: between failures of the run.
        saves: how long they take.
        steps: between saves, as the recipe has it.
        lost: part of the useful time that saves, lost steps and restarts take besides.
        best_steps: between saves where least is lost.
        least_lost: the same part there.
    """

    mtbf_seconds: float
    saves: Saves
    steps: int
    lost: float
    best_steps: int
    least_lost: float


def losses(plan: Plan, layout: LayoutPlan, assumed: Assumed) -> Losses | None:
    """What a layout loses by failures and saves; None where its speed is not known."""
    if layout.speed is None:
        return None
    step, checkpoint = layout.speed.step_seconds, plan.run.checkpoint
    hours = assumed.mtbf_hours or plan.device.hours_between_failures
    mtbf = hours * _HOUR / plan.world_size
    saves = save_time(plan, layout, assumed)
    # A checkpoint that is still being written is of no use.
    restart = assumed.restart_minutes * 60 + (saves.write - saves.stall)
    steps = checkpoint.save_every_steps
    if checkpoint.save_every_minutes is not None:
        steps = min(steps, max(1, round(checkpoint.save_every_minutes * 60 / step)))
    # A save beside the training has to be whole before the next one begins.
    beside = saves.write if saves.stall < saves.write else 0.0
    best = max(1, round(best_interval(saves.stall, mtbf) / step), math.ceil(beside / step))
    if plan.steps is not None:
        best = min(best, max(1, plan.steps))
    return Losses(
        mtbf,
        saves,
        steps,
        lost_part(steps * step, saves.stall, restart, mtbf),
        best,
        lost_part(best * step, saves.stall, restart, mtbf),
    )


def save_time(plan: Plan, layout: LayoutPlan, assumed: Assumed) -> Saves:
    """Weights and optimizer state of the whole network, written by all ranks at once into one store."""
    stages = distinct_stages(layout.run, plan.world_size)
    copies = [checkpoint_copy(stage) for stage in stages]
    # Those between the first and the last are alike.
    pipeline = layout.run.parallel.pipeline_model_parallel_size
    middle = sum(copies[1:-1]) * (pipeline - 2) if pipeline > 2 else 0
    ranks = plan.world_size / pipeline
    whole = (copies[0] + middle + (copies[-1] if pipeline > 1 else 0)) * ranks
    copy = max(copies) / (_COPY_GB_PER_SECOND * 1e9)
    total = copy + whole / (STORE_GB_PER_SECOND * 1e9) if assumed.save_seconds is None else assumed.save_seconds
    return Saves(min(copy, total) if plan.run.checkpoint.asynchronous else total, total)


def best_interval(save: float, mtbf: float) -> float:
    """Seconds of training between saves at which least is lost (Daly's equation 37)."""
    if save >= 2 * mtbf:
        return mtbf
    part = math.sqrt(save / (2 * mtbf))
    return math.sqrt(2 * save * mtbf) * (1 + part / 3 + part**2 / 9) - save


def lost_part(interval: float, save: float, restart: float, mtbf: float) -> float:
    """What saves, lost steps and restarts take besides useful time, as a part of it (Daly's equation 20).

    Args:
        interval: seconds of training between saves.
        save: seconds that a save stops it.
        restart: seconds from a failure to the first step again.
        mtbf: seconds between failures of the run.
    """
    part, again = (interval + save) / mtbf, restart / mtbf
    if part + again > 500:
        return math.inf
    return mtbf * math.exp(again) * math.expm1(part) / interval - 1
