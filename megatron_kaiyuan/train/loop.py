"""The loop: a step, then everything that hangs on it, until the stream ends or somebody asks to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.optim.build import set_step_options
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.train.hooks import Hook, StopOnSignal
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.step import training_step


@dataclass
class Session:
    """One process's view of a run in progress.

    Attributes:
        identity: what a checkpoint says about the run that wrote it (configuration, phases, versions).
        resumed: the state came from a checkpoint.
        stop_requested: every rank has agreed to end after this step.
    """

    run: RunConfig
    state: TrainState
    stream: TokenStream
    schedule: Schedule
    total_steps: int
    identity: dict[str, Any]
    resumed: bool
    signals: StopOnSignal
    hooks: list[Hook] = field(default_factory=list)
    stop_requested: bool = False

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.state.progress.step >= self.total_steps

    @property
    def ended(self) -> bool:
        """No further step will be taken by this process."""
        return self.finished or self.stop_requested


def fit(session: Session) -> None:
    """Train to the end of the session. Collective: every rank calls it and takes the same steps."""
    state, train = session.state, session.run.train
    for hook in session.hooks:
        hook.start(session)

    while not session.ended:
        step_end = state.progress.tokens + train.tokens_per_step
        learning_rate = session.schedule.learning_rate(step_end)
        set_step_options(state.optimizer, learning_rate, session.run.optimizer.weight_decay)

        result = training_step(state, session.stream, train, stop=session.signals.requested)

        state.progress.step += 1
        state.progress.tokens = step_end
        state.progress.skipped_steps += result.skipped
        session.stop_requested = result.stop_requested
        for hook in session.hooks:
            hook.after_step(session, result)

    for hook in session.hooks:
        hook.finish(session)
