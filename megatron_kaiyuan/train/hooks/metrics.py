"""Rows of metrics."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from megatron_kaiyuan.metrics import close_recorder, finite_or_none, open_recorder
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.optim.build import learning_rates
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.reduce import agree, reduce_metrics, sum_dtype
from megatron_kaiyuan.train.hooks.stragglers import Stragglers
from megatron_kaiyuan.train.hooks.utilization import Utilization
from megatron_kaiyuan.train.hooks.validation import Validation
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult


class Metrics(Hook):
    """A row of metrics every `log_every_steps`, for steps after which the network was validated, and for the last one.

    Of the row, `loss` is the step's own; `loss_mean` is the mean over the steps since the row before, `loss_steps` of
    them, those whose loss is not finite left out. Columns `room/what` are what rooms have recorded
    (`megatron_kaiyuan/metrics.py`).
    """

    def __init__(
        self,
        sinks: Sinks,
        utilization: Utilization,
        stragglers: Stragglers,
        validation: Validation,
        platform: Platform,
    ):
        self._sinks, self._utilization = sinks, utilization
        self._stragglers, self._validation = stragglers, validation
        # Open before the first hook starts, which may announce a metric.
        self._recorder = open_recorder(sum_dtype(platform))
        self._results: list[StepResult] = []

    def after_step(self, session: Session, result: StepResult) -> None:
        self._results.append(result)
        is_logged = session.state.progress.step % session.run.monitor.log_every_steps == 0
        if is_logged or session.ended or self._validation.columns:
            row = {**_row(session, self._results, self._utilization), **self._stragglers.columns}
            row |= self._validation.columns
            self._sinks.write({**row, **self._recorded(session, result)})
            self._results.clear()

    def rolled_back(self, session: Session) -> None:
        self._results.clear()
        self._recorder.totals.clear()

    def finish(self, session: Session) -> None:
        close_recorder()

    def give_up(self, session: Session) -> None:
        close_recorder()

    def _recorded(self, session: Session, result: StepResult) -> dict[str, float | None]:
        """Return the columns of what all ranks have recorded. Collective where anything was ever recorded."""
        if result.votes.metrics:
            agree(self._recorder)
            recorded = [metric.name for metric in self._recorder.agreed if metric.terminal]
            self._sinks.show([*self._validation.shown, *recorded])
        return reduce_metrics(self._recorder, session.state.platform)


def _row(session: Session, results: Sequence[StepResult], utilization: Utilization) -> dict[str, object]:
    progress, result = session.state.progress, results[-1]
    losses = [one.loss for one in results if math.isfinite(one.loss)]
    seconds_per_step = statistics.fmean(one.seconds for one in results)
    tokens_per_second = session.run.train.tokens_per_step / seconds_per_step
    # The phase of its last token: `tokens` is where the next step starts.
    index, _ = session.stream.phase_at(progress.tokens - 1)
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "phase": session.stream.phases[index].name,
        "phase_tokens": progress.tokens - sum(phase.tokens for phase in session.stream.phases[:index]),
        "loss": finite_or_none(result.loss),
        "loss_mean": statistics.fmean(losses) if losses else None,
        "loss_steps": len(losses),
        "lr": session.schedule.learning_rate(progress.tokens),
        **learning_rates(session.state.optimizer),
        "grad_norm": None if result.skipped else result.gradient_norm,
        "loss_scale": result.loss_scale,
        "seconds_per_step": seconds_per_step,
        "tokens_per_second": tokens_per_second,
        **utilization.columns(tokens_per_second),
        "skipped_steps": progress.skipped_steps,
        "overflow_steps": progress.overflow_steps,
        "peak_memory_bytes": session.state.platform.peak_memory_bytes(),
        "time": time.time(),
    }
