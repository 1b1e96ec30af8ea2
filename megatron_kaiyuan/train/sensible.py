"""Plans that a recipe allows and that make no sense: some are refused, others are warned about at each start.

Refused is what no continuation of the run could mend; a run that stops early may be meant to be continued, so that
`train.train_tokens` alone never makes a plan wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.optimizers import rules

# A learning rate that never comes to half of any peak is not the one that was asked for.
_LEAST_REACHED = 0.5
_ODD_BELOW = 0.8
# Of AdamW; recipes of all sizes stay below a tenth of it.
_LARGEST_USUAL_RATE = 0.1


def require_reached_peak(run: RunConfig, schedule: Schedule) -> None:
    """Refuse a schedule that comes near none of its peaks, because the decay of each phase begins in the warm-up.

    Raises:
        UserError: naming how far it comes.
    """
    reached = [share for _, share in _reached(run, schedule)]
    if reached and max(reached) < _LEAST_REACHED:
        raise UserError(
            f"optimizer.warmup_tokens: {run.optimizer.warmup_tokens:,} last into the decay of the learning rate, which "
            f"comes to {max(reached):.0%} of peak_lr at most; make the warm-up shorter, or the last phase's "
            "decay_fraction smaller"
        )


def odd_plan(run: RunConfig, schedule: Schedule, steps: int, end: int) -> Iterator[str]:
    """A line for each thing that can be done and is rarely meant.

    Args:
        steps: of the whole run; `end`: the position after the last one, in tokens.
    """
    yield from _odd_fields(run)
    if steps == 0:
        yield "train.train_tokens is 0: only step 0, the untrained network, is written"
        return
    warmup, length = run.optimizer.warmup_tokens, schedule.starts[-1]
    if end < warmup:
        yield (
            f"training stops at {end:,} tokens, within the warm-up of {warmup:,}: at a learning rate of "
            f"{schedule.learning_rate(end):.3g}"
        )
    for number, share in _reached(run, schedule):
        if share < _ODD_BELOW and schedule.starts[number] < end:
            peak = run.data.phases[number].peak_lr
            yield f"data.phases.{number}: the warm-up leaves it {share:.0%} of its peak_lr {peak:g} at most"
    if end > length:
        yield (
            f"the schedule ends after {length:,} tokens (optimizer.schedule_tokens): the last {end - length:,} are "
            f"trained on at its last learning rate, {schedule.learning_rate(length):.3g}"
        )
    yield from _odd_checkpoints(run, steps)


def _odd_fields(run: RunConfig) -> Iterator[str]:
    own = run.optimizer.decoupled_lr
    if own is not None and own > _LARGEST_USUAL_RATE:
        yield f"optimizer.decoupled_lr {own:g} is far above what AdamW takes; 6e-3 is large already"
    if all(rule.lr_mult == 0 for rule in rules(run).values()):
        yield "optimizer.lr_mult is 0 for every kind of weight: nothing is trained"
    seen: set[str] = set()
    for number, phase in enumerate(run.data.phases):
        place = f"data.phases.{number}"
        if phase.peak_lr > _LARGEST_USUAL_RATE:
            yield f"{place}.peak_lr {phase.peak_lr:g} is far above what AdamW takes; 6e-3 is large already"
        default = type(phase).model_fields["decay_fraction"].default
        if phase.final_lr is None and phase.decay_fraction != default:
            yield f"{place}.decay_fraction {phase.decay_fraction:g} has no effect without final_lr: there is no decay"
        if phase.final_lr is not None and phase.decay_fraction == 0:
            yield f"{place}.final_lr {phase.final_lr:g} is never reached with decay_fraction 0: there is no decay"
        if str(phase.path) in seen:
            yield f"{place}.path {phase.path} is an earlier phase too: its documents are read again, in the same order"
        seen.add(str(phase.path))


def _odd_checkpoints(run: RunConfig, steps: int) -> Iterator[str]:
    options = run.checkpoint
    if options.save_every_minutes is not None:
        return
    every = options.save_every_steps
    if every > steps:
        yield (
            f"checkpoint.save_every_steps {every:,} is beyond the {steps:,} steps of the run: it is saved at its end "
            "alone, and a crash before loses it; save_every_minutes helps too"
        )
    kept = options.keep_every_steps
    if kept is not None and kept % every:
        common = every * kept // gcd(every, kept)
        yield (
            f"checkpoint.keep_every_steps {kept:,} is not a multiple of save_every_steps {every:,}: only multiples of "
            f"{common:,} stay"
        )


def _reached(run: RunConfig, schedule: Schedule) -> Iterator[tuple[int, float]]:
    """Of each phase that the schedule holds: its number, and the part of its peak that the learning rate comes to."""
    for number, phase in enumerate(run.data.phases):
        start, stop = schedule.starts[number], schedule.starts[number + 1]
        if start < stop:
            points = {start + (stop - start) * part // 1000 for part in range(1, 1001)} | {stop}
            warmup = run.optimizer.warmup_tokens
            points |= {warmup} if start < warmup <= stop else set()
            yield number, max(schedule.learning_rate(point) for point in points if point > start) / phase.peak_lr
