"""When a run is saved, and what it leaves when it ends before its time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.retention import Retention, prune
from megatron_kaiyuan.checkpoint.save import Saved, Saver
from megatron_kaiyuan.checkpoint.verify import usable_steps
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.only_job import OnlyJob
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult
from megatron_kaiyuan.train.votes import Votes

log = logging.getLogger(__name__)

SAVE_NOW = "save_now"


class Checkpoints(Hook):
    """A checkpoint before the first step of a new run, every N steps or T minutes, on request, and at the end.

    Rank 0 alone looks at the clock and at `run_dir/save_now`, and votes; so all ranks save the same step.
    """

    def __init__(self, sinks: Sinks, only_job: OnlyJob):
        self._sinks, self._only_job = sinks, only_job
        self._saver = Saver()
        self._unremovable: set[int] = set()
        self._stuck: set[Path] = set()
        self._saved_step: int | None = None
        self._last_save = time.monotonic()

    def start(self, session: Session) -> None:
        if session.resumed:
            self._saved_step = session.state.progress.step
            if _is_first_rank():
                self._take_away(session.run.run_dir / layout.PREEMPTED)
        else:
            # Step 0 proves that the disk takes a checkpoint before a month depends on it, and keeps the
            # untrained weights for comparison.
            self._save(session)
            self._settle()

    def vote(self, session: Session) -> Votes:
        wanted = _is_first_rank() and (self._is_due(session) or self._is_asked(session.run.run_dir / SAVE_NOW))
        return Votes(save=int(wanted), writing=int(self._saver.busy), failed=int(self._saver.failed))

    def before_update(self, session: Session) -> None:
        """A save may still be copying the weights and moments."""
        self._saver.wait_for_copy()

    def after_step(self, session: Session, result: StepResult) -> None:
        self._report(self._saver.advance(result.votes.writing, result.votes.failed))
        if session.state.progress.step % session.run.checkpoint.save_every_steps == 0 or result.votes.save:
            self._save(session)

    def bad_step(self, session: Session, result: StepResult) -> None:
        """What answers a bad step has to know which checkpoints there are."""
        self._settle()

    def rolled_back(self, session: Session) -> None:
        self._saved_step = session.state.progress.step

    def finish(self, session: Session) -> None:
        if self._saved_step != session.state.progress.step:
            self._save(session)
        self._settle()
        if not session.finished and _is_first_rank():
            progress = session.state.progress
            marker = {"step": progress.step, "tokens": progress.tokens, "time": time.time()}
            write_json(session.run.run_dir / layout.PREEMPTED, marker)

    def give_up(self, session: Session) -> None:
        # The error that ended the run is the one to report.
        with contextlib.suppress(UserError, OSError, RuntimeError):
            self._settle()

    def _is_due(self, session: Session) -> bool:
        minutes = session.run.checkpoint.save_every_minutes
        return minutes is not None and time.monotonic() - self._last_save >= 60 * minutes

    def _save(self, session: Session) -> None:
        with self._only_job.working(f"saving step {session.state.progress.step}"):
            self._save_now(session)

    def _save_now(self, session: Session) -> None:
        self._settle()
        run, progress = session.run, session.state.progress
        run_dir, step, retention = run.run_dir, progress.step, _retention(session)
        if _is_first_rank():
            self._take_away(run_dir / SAVE_NOW)
        self._last_save = time.monotonic()
        self._only_job.require()

        def whole() -> None:
            # Minutes may have passed: another job's `latest` and checkpoints are not this one's to change.
            self._only_job.require_here()
            layout.point_latest(run_dir, step)
            prune(run_dir, retention, self._could_not_remove)

        self._sinks.flush()
        started = time.perf_counter()
        scheduled = step % run.checkpoint.save_every_steps == 0
        about: dict[str, Any] = {"step": step, "tokens": progress.tokens, "scheduled": scheduled, "world": _world()}
        if run.ema.decay is not None:
            about["ema"] = {"decay": run.ema.decay, "every_steps": run.ema.every_steps}
        content = {**session.state.sharded(), "run": session.identity}
        self._saver.begin(layout.step_folder(run_dir, step), content, about, started=started, after=whole)
        self._saved_step = step
        if not run.checkpoint.asynchronous:
            self._settle()

    def _is_asked(self, path: Path) -> bool:
        """Whether a user's file is there, and is not one that could not be taken away when it was answered."""
        if not os.path.lexists(path):
            self._stuck.discard(path)
            return False
        return path not in self._stuck

    def _take_away(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if path not in self._stuck:
                log.warning(
                    f"{path}: could not be removed ({error.strerror}) and means nothing from here on; remove it"
                )
            self._stuck.add(path)

    def _could_not_remove(self, step: int, why: str) -> None:
        if step not in self._unremovable:
            self._unremovable.add(step)
            log.warning(f"old checkpoint step_{step} could not be removed ({why}); it is tried again at each save")

    def _settle(self) -> None:
        """Wait for the save that is under way."""
        with self._only_job.working("saving"):
            self._report(self._saver.wait())

    def _report(self, saved: Saved | None) -> None:
        if saved is None:
            return
        self._sinks.event(
            "checkpoint",
            step=saved.about["step"],
            seconds=round(saved.seconds, 3),
            stall_seconds=round(saved.stall_seconds, 3),
            bytes=saved.bytes,
        )


def newest_checkpoint(run_dir: Path) -> str:
    """For a last word before the end."""
    steps = usable_steps(run_dir)
    return f"the newest checkpoint is step_{steps[-1]}" if steps else "there is no checkpoint"


def _retention(session: Session) -> Retention:
    options = session.run.checkpoint
    return Retention(options.keep_last, options.keep_every_steps, options.keep_every_tokens)


def _world() -> dict[str, int]:
    return {
        "size": torch.distributed.get_world_size(),
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }


def _is_first_rank() -> bool:
    return torch.distributed.get_rank() == 0
