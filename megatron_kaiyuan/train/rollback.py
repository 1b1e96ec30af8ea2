"""What follows on a bad step: nothing but the loss of its batch, a return to an older state, or the end."""

from __future__ import annotations

import logging

import torch

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.choose import choose_step
from megatron_kaiyuan.checkpoint.common_form import ResumableForm
from megatron_kaiyuan.checkpoint.load import load_common
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.train.resume import restore_step
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult

log = logging.getLogger(__name__)


def went_back(session: Session, result: StepResult) -> bool:
    """Answer a step's fault. Collective.

    Returns:
        Whether the state is now an older one, and the step is not to be counted.

    Raises:
        UserError: the recipe, or one of its bounds, wants the run to stop.
    """
    assert result.fault is not None
    if result.fault.action == "skip":
        session.left_out.skip(result)
    for hook in session.hooks:
        hook.bad_step(session, result)
    if result.fault.action == "stop":
        raise UserError(
            f"step {result.step} (tokens from {result.tokens[0]}): {result.fault.reason}; its update was not "
            "applied and nothing was saved since the last checkpoint; look at its documents in metrics.jsonl, lower "
            "the learning rate or change faults.on_bad_step, and start again",
            every_rank=True,
        )
    if result.fault.action == "rollback":
        _roll_back(session, result)
    return result.fault.action == "rollback"


def _roll_back(session: Session, result: StepResult) -> None:
    """Restore the newest whole checkpoint and leave out the tokens that led to the bad step, its batch last."""
    state, run = session.state, session.run
    choice = choose_step(run.run_dir)
    assert choice.step is not None, "a run saves its first state before its first step"
    if torch.distributed.get_rank() == 0:
        for problem in choice.problems:
            log.warning(problem)
    session.bad_steps.count_rollback(choice.step)

    folder = layout.step_folder(run.run_dir, choice.step)
    tokens_per_step = run.train.tokens_per_step
    end = result.tokens[1]
    first = max(
        load_common(folder, ResumableForm)["progress"]["tokens"], end - run.faults.rollback_batches * tokens_per_step
    )
    # What the checkpoint had left out is among it: nothing is ever put back.
    left_out = [*state.progress.left_out, [first, end]]
    session.left_out.roll_back(result, left_out[-1], choice.step)
    restore_step(state, folder)
    state.progress.left_out = left_out
    for hook in session.hooks:
        hook.rolled_back(session)
