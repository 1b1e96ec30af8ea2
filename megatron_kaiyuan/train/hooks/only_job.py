"""One job at a time: the lock of the run folder, and its note of what the job is doing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint.lock import RunLock
from megatron_kaiyuan.checkpoint.retention import remove_unfinished
from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.cluster.limits import TimeLimits
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult

log = logging.getLogger(__name__)


class OnlyJob(Hook):
    """Rank 0 holds the run's lock, from here to the last hook; what a dead job left half written is removed.

    Collective. After an error nothing is released, as other ranks may still be at work: the lock goes with the
    process. The lock's note says what the job is doing, and since when.

    Args:
        limits: how long it may be doing one thing, as the watchdog has them too.

    Raises:
        UserError: another job holds it.
    """

    def __init__(self, run_dir: Path, limits: TimeLimits):
        self._limits, self._doing = limits, "starting"
        self._step: int | None = None

        def take() -> RunLock | None:
            if torch.distributed.get_rank() != 0:
                return None
            lock = RunLock(run_dir)
            for problem in remove_unfinished(run_dir):
                log.warning(problem)
            return lock

        self._lock = agree_on_error(take)
        self._advance("starting")

    @contextlib.contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """The body is work of its own, which may take longer than a step."""
        before = self._doing
        self._advance(doing)
        yield
        self._advance(before)

    def start(self, session: Session) -> None:
        self._step = session.state.progress.step
        self._advance("first step")

    def after_step(self, session: Session, result: StepResult) -> None:
        self._step = session.state.progress.step
        self._advance("step")

    def bad_step(self, session: Session, result: StepResult) -> None:
        self._advance("answering a bad step")

    def rolled_back(self, session: Session) -> None:
        self._step = session.state.progress.step
        self._advance("step")

    def _advance(self, doing: str) -> None:
        self._doing = doing
        if self._lock is not None:
            at_start = doing in ("starting", "first step")
            limit = self._limits.collective if at_start else self._limits.hang
            self._lock.advance(doing, self._step, limit)

    def require(self) -> None:
        """Raise on every rank when the lock was removed: another job may have taken the folder. Collective."""
        agree_on_error(self.require_here)

    def require_here(self) -> None:
        """The same for rank 0 alone, which holds the lock."""
        if self._lock is not None:
            self._lock.require()

    def finish(self, session: Session) -> None:
        if self._lock is not None:
            self._lock.release()
