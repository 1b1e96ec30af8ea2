"""What happens in a run now and then, as events: bad steps, the loss scale, the first step."""

from __future__ import annotations

import os
import platform
import socket

import torch

from megatron_kaiyuan.data.documents import documents_between
from megatron_kaiyuan.metrics import finite_or_none
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.optim.scaler import loss_scaler
from megatron_kaiyuan.platform.megatron import good_steps, hysteresis_left
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.startup import Startup
from megatron_kaiyuan.train.step import StepResult


class ReportBadSteps(Hook):
    """Bad steps and rollbacks as events, with the documents that the batch was made of."""

    def __init__(self, sinks: Sinks):
        self._sinks = sinks

    def bad_step(self, session: Session, result: StepResult) -> None:
        if result.fault is None or torch.distributed.get_rank() != 0:
            return
        start, end = result.tokens
        # With the last label.
        stop = min(end + 1, session.stream.tokens)
        self._sinks.event(
            "bad_step",
            step=result.step,
            reason=result.fault.reason,
            action=result.fault.action,
            loss=finite_or_none(result.loss),
            gradient_norm=finite_or_none(result.gradient_norm),
            loss_scale=result.loss_scale,
            tokens=[start, stop],
            documents=documents_between(session.stream, start, stop),
        )

    def rolled_back(self, session: Session) -> None:
        progress = session.state.progress
        self._sinks.event("rollback", step=progress.step, tokens=progress.tokens, left_out=progress.left_out[-1])


class ReportLossScale(Hook):
    """Every overflow that the loss scaler answered, and every change of its scale, as an event.

    Rows of metrics come every so many steps; with these events the history of the scale is complete.
    """

    def __init__(self, sinks: Sinks):
        self._sinks = sinks

    def after_step(self, session: Session, result: StepResult) -> None:
        scaler = loss_scaler(session.state.optimizer)
        if scaler is None or torch.distributed.get_rank() != 0:
            return
        # Read on the host, so that other steps do not wait for the device.
        if not result.overflow and good_steps(scaler) > 0:
            return
        self._sinks.event(
            "loss_scale",
            step=result.step,
            reason="overflow" if result.overflow else f"{scaler.growth_interval} good steps",
            was=result.loss_scale,
            now=float(scaler.scale),
            hysteresis_left=max(hysteresis_left(scaler), 0),
        )


class ReportEnvironment(Hook):
    """Once a start: which code runs on what, for those who look at the run later."""

    def __init__(self, sinks: Sinks):
        self._sinks = sinks

    def start(self, session: Session) -> None:
        world_size = torch.distributed.get_world_size()
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        self._sinks.table(
            "environment",
            step=session.state.progress.step,
            versions=session.identity["versions"],
            git=session.identity["git"],
            device=session.state.platform.device_name(),
            nodes=-(-world_size // per_node),
            host=socket.gethostname(),
            system=platform.platform(),
            cores=os.cpu_count(),
        )


class ReportStartup(Hook):
    """Once, after the first step: startup time by phase."""

    def __init__(self, sinks: Sinks, startup: Startup):
        self._sinks = sinks
        self._startup: Startup | None = startup

    def start(self, session: Session) -> None:
        if self._startup is not None:
            self._startup.ended("checkpoint")

    def after_step(self, session: Session, result: StepResult) -> None:
        if self._startup is not None:
            self._startup.ended("first_step")
            parts = {name: round(seconds, 2) for name, seconds in self._startup.parts.items()}
            self._sinks.event("startup", seconds=round(self._startup.seconds, 2), **parts)
            self._startup = None
