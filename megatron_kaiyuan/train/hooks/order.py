"""All hooks of a run, in the one order in which they are called. No other place adds any."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_kaiyuan.cluster.watchdog import Watchdog
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.hooks.ema import keep_ema
from megatron_kaiyuan.train.hooks.events import ReportBadSteps, ReportEnvironment, ReportLossScale, ReportStartup
from megatron_kaiyuan.train.hooks.forensics import forensics
from megatron_kaiyuan.train.hooks.heartbeat import Heartbeat
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.left_out import LeftOut
from megatron_kaiyuan.train.hooks.metrics import Metrics
from megatron_kaiyuan.train.hooks.monitoring import monitoring
from megatron_kaiyuan.train.hooks.only_job import OnlyJob
from megatron_kaiyuan.train.hooks.profiling import profiling
from megatron_kaiyuan.train.hooks.qk_clip import qk_clip
from megatron_kaiyuan.train.hooks.run_sinks import RunSinks
from megatron_kaiyuan.train.hooks.samples import samples
from megatron_kaiyuan.train.hooks.saving import Checkpoints
from megatron_kaiyuan.train.hooks.stop import StopOnSignal
from megatron_kaiyuan.train.hooks.stragglers import Stragglers
from megatron_kaiyuan.train.hooks.tasks import tasks
from megatron_kaiyuan.train.hooks.utilization import Utilization
from megatron_kaiyuan.train.hooks.validation import Validation
from megatron_kaiyuan.train.startup import Startup


def hooks_in_order(
    run: RunConfig,
    platform: Platform,
    startup: Startup,
    run_sinks: RunSinks,
    used: Utilization,
    left_out: LeftOut,
    only_job: OnlyJob,
    watchdog: Watchdog | None,
    more: Sequence[Hook],
) -> list[Hook]:
    """Return the hooks that the recipe asks for.

    Args:
        watchdog: None: nothing watches this process.
        more: the caller's own, called last.
    """
    sinks, stragglers = run_sinks.sinks, Stragglers()
    stop = StopOnSignal(run.checkpoint.preempt_deadline_seconds)
    validated = Validation(run, sinks, stop, watchdog)
    return [
        # First: what the other hooks do counts toward the next step.
        *([] if watchdog is None else [Heartbeat(watchdog)]),
        # A profile holds the work of all hooks after it.
        *profiling(run, platform, sinks),
        stop,
        left_out,
        ReportEnvironment(sinks),
        ReportBadSteps(sinks),
        ReportLossScale(sinks),
        *qk_clip(run),
        # Before all that looks at the weights of a step or saves them.
        *keep_ema(run),
        *monitoring(run, sinks),
        # After the monitor, which reads the gradients of the step itself: it leaves buffers of zeros.
        *forensics(run, sinks),
        # Before the row of the step, which has their figures.
        *tasks(run, only_job, watchdog),
        # Before the row that takes its columns.
        stragglers,
        # Measured between the step and its row.
        validated,
        Metrics(sinks, used, stragglers, validated, platform),
        # After the row of its step.
        *samples(run, sinks),
        # After all that records a step: a kill loses no row of a step that is not trained again.
        Checkpoints(sinks, only_job),
        # Closes the sinks, after the last hook that writes to them at the end of a run.
        run_sinks,
        # The lock is held until everything is written.
        only_job,
        # Last, so that the first step is counted with all of its hooks. It writes after that step only.
        ReportStartup(sinks, startup),
        *more,
    ]
