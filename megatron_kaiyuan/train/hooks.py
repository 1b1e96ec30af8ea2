"""Everything round the step: stop signals, bad losses, checkpoints, metrics."""

from __future__ import annotations

import math
import signal
import statistics
import time
from types import FrameType

from megatron_kaiyuan.checkpoint.save import save_step
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.train.session import Hook, Session
from megatron_kaiyuan.train.step import StepResult
from megatron_kaiyuan.train.votes import Votes


class StopOnSignal(Hook):
    """SIGTERM and SIGINT end the run after the current step, with a checkpoint.

    The handler only sets a flag: the launcher also sends SIGTERM to healthy ranks when another one is dead,
    and a collective in the handler would hang then.
    """

    def __init__(self) -> None:
        self.requested = False

    def start(self, session: Session) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def vote(self, session: Session) -> Votes:
        return Votes(stop=int(self.requested))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Metrics(Hook):
    """A row of metrics every `log_every_steps`, and for the last step."""

    def __init__(self, sinks: Sinks):
        self._sinks = sinks
        self._seconds: list[float] = []

    def after_step(self, session: Session, result: StepResult) -> None:
        self._seconds.append(result.seconds)
        if session.state.progress.step % session.run.monitor.log_every_steps == 0 or session.ended:
            self._sinks.write(_row(session, result, statistics.fmean(self._seconds)))
            self._seconds.clear()

    def finish(self, session: Session) -> None:
        self._sinks.event("stop", step=session.state.progress.step, finished=session.finished)
        self._sinks.close()


def _row(session: Session, result: StepResult, seconds_per_step: float) -> dict[str, object]:
    progress, train = session.state.progress, session.run.train
    # The step is told by its last token: `tokens` is where the next one starts.
    index, _ = session.stream.phase_at(progress.tokens - 1)
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "phase": session.stream.phases[index].name,
        "phase_tokens": progress.tokens - sum(phase.tokens for phase in session.stream.phases[:index]),
        "loss": result.loss,
        "lr": session.schedule.learning_rate(progress.tokens),
        "grad_norm": None if math.isnan(result.gradient_norm) else result.gradient_norm,
        "loss_scale": result.loss_scale,
        "seconds_per_step": seconds_per_step,
        "tokens_per_second": train.tokens_per_step / seconds_per_step,
        "skipped_steps": progress.skipped_steps,
        "peak_memory_bytes": session.state.platform.peak_memory_bytes(),
        "time": time.time(),
    }


class StopOnBadLoss(Hook):
    """A loss that is not a number ends the run before it is saved; the last checkpoint stays good.

    With FP16 the loss scaler skips such a step, so that only a loss that stays bad ends the run.
    """

    _MOST_SKIPS_IN_A_ROW = 50

    def __init__(self) -> None:
        self._skips_in_a_row = 0

    def after_step(self, session: Session, result: StepResult) -> None:
        self._skips_in_a_row = self._skips_in_a_row + 1 if result.skipped else 0
        bad_update = not math.isfinite(result.loss) and not result.skipped
        if bad_update or self._skips_in_a_row >= self._MOST_SKIPS_IN_A_ROW:
            progress = session.state.progress
            raise UserError(
                f"step {progress.step} (tokens up to {progress.tokens}): loss {result.loss}, {self._skips_in_a_row} "
                f"skipped steps in a row, loss scale {result.loss_scale:g}; nothing was saved since the last "
                "checkpoint; lower the learning rate or check the data at that position, and start again",
                every_rank=True,
            )


class Checkpoints(Hook):
    """A checkpoint before the first step of a new run, every `save_every_steps`, and at the end."""

    def __init__(self, sinks: Sinks):
        self._sinks = sinks
        self._saved_step: int | None = None

    def start(self, session: Session) -> None:
        if session.resumed:
            self._saved_step = session.state.progress.step
        else:
            # Step 0 proves that the disk takes a checkpoint before a month depends on it, and keeps the
            # untrained weights for comparison.
            self._save(session)

    def after_step(self, session: Session, result: StepResult) -> None:
        if session.state.progress.step % session.run.checkpoint.save_every_steps == 0:
            self._save(session)

    def finish(self, session: Session) -> None:
        if self._saved_step != session.state.progress.step:
            self._save(session)

    def _save(self, session: Session) -> None:
        started = time.perf_counter()
        step = session.state.progress.step
        content = {**session.state.sharded(), "run": session.identity}
        save_step(session.run.run_dir, step, content, session.run.checkpoint.keep_last)
        self._saved_step = step
        self._sinks.event("checkpoint", step=step, seconds=round(time.perf_counter() - started, 2))
