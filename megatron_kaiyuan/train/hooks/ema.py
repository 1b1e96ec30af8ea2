"""The average of the weights that a run keeps (`ema.decay`), after each update."""

from __future__ import annotations

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult


def keep_ema(run: RunConfig) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [] if run.ema.decay is None else [KeepEma()]


class KeepEma(Hook):
    """A step whose update was withheld (an overflow, a bad step) changes nothing, and does not count.

    A rollback brings the average back with the weights (`TrainState.restore`).
    """

    def start(self, session: Session) -> None:
        ema = session.state.ema
        assert ema is not None
        if not ema.total:
            # A new run's weights may come from elsewhere (`init_from`), after the average was made.
            ema.begin()

    def after_step(self, session: Session, result: StepResult) -> None:
        ema, progress = session.state.ema, session.state.progress
        if ema is not None and not result.skipped:
            ema.update(progress.step - progress.skipped_steps)
