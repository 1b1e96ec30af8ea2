"""A sign of life after each step, for the watchdog."""

from __future__ import annotations

from megatron_kaiyuan.cluster.watchdog import Watchdog
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult


class Heartbeat(Hook):
    """Report progress to the watchdog. The first hook: what the others do counts toward the next step."""

    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog

    def after_step(self, session: Session, result: StepResult) -> None:
        self._watchdog.beat()

    def rolled_back(self, session: Session) -> None:
        self._watchdog.beat()
