"""Forward passes between steps, to measure the network as it is; no later step could find any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megatron_kaiyuan.metrics import not_recorded
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.step import StepResult


@contextlib.contextmanager
def measuring(state: TrainState) -> Iterator[None]:
    """Make the weights whole; in the body modules are in evaluation mode, and nothing is recorded. Collective.

    Random generators are restored afterwards.
    """
    state.gather_weights()
    host, device = torch.get_rng_state(), state.platform.rng_state()
    for model in state.models:
        model.eval()
    try:
        with not_recorded():
            yield
    finally:
        torch.set_rng_state(host)
        state.platform.set_rng_state(device)
        for model in state.models:
            model.train()


def is_due(session: Session, result: StepResult, every_steps: int | None, every_tokens: int | None) -> bool:
    """Whether to measure after a step: the last one, or one in so many steps or tokens.

    Where a job has to make room, nothing is: its time is the checkpoint's.

    Args:
        every_steps, every_tokens: one of them; both None: where checkpoints are scheduled.
    """
    if session.finished or session.stop_agreed:
        return session.finished
    if every_tokens is not None:
        start, stop = result.tokens
        return stop // every_tokens > start // every_tokens
    return session.state.progress.step % (every_steps or session.run.checkpoint.save_every_steps) == 0
