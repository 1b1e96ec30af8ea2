"""One process's view of a run in progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.optim.schedule import Schedule
from megatron_kaiyuan.train.bad_steps import BadSteps
from megatron_kaiyuan.train.state import TrainState

if TYPE_CHECKING:
    from megatron_kaiyuan.train.hooks.hook import Hook
    from megatron_kaiyuan.train.hooks.left_out import LeftOut


@dataclass
class Session:
    """A run that is ready to train.

    Attributes:
        end: position after the last step, which is the last whole batch before the end of the data or of
            `train.train_tokens`.
        identity: what a checkpoint says about the run that wrote it (configuration, phases, versions).
        resumed: the state came from a checkpoint.
        bad_steps: judges each step before its update.
        left_out: the batches that bad steps left out, as the run folder lists them.
        stop_agreed: every rank knows that some rank was asked, and ends after this step.
        stopped_by: number of the signal that stopped the run before its end; 0: none has.
    """

    run: RunConfig
    state: TrainState
    stream: TokenStream
    schedule: Schedule
    end: int
    identity: dict[str, Any]
    resumed: bool
    hooks: list[Hook]
    bad_steps: BadSteps
    left_out: LeftOut
    stop_agreed: bool = False
    stopped_by: int = 0

    @property
    def finished(self) -> bool:
        """There is no whole batch left."""
        tokens_per_step = self.run.train.tokens_per_step
        return self.state.progress.next_batch(tokens_per_step) + tokens_per_step > self.end

    @property
    def total_steps(self) -> int:
        """Steps taken, and those that the rest of the tokens is enough for. The batch may have had other sizes."""
        progress = self.state.progress
        left = self.end - progress.tokens
        left -= sum(max(stop - max(start, progress.tokens), 0) for start, stop in progress.left_out)
        return progress.step + max(left, 0) // self.run.train.tokens_per_step

    def before_update(self) -> None:
        """Let each hook end what the update must not meet."""
        for hook in self.hooks:
            hook.before_update(self)

    @property
    def ended(self) -> bool:
        """No further step will be taken by this process."""
        return self.finished or self.stop_agreed
