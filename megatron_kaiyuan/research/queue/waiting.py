"""Has an array of Slurm's do a list of runs, and waits for it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence, Set
from pathlib import Path
from types import FrameType

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue.failures import Failures
from megatron_kaiyuan.research.queue.progress import RunCounter
from megatron_kaiyuan.research.queue.signals import handled_signals
from megatron_kaiyuan.research.queue.slurm import Array, ArrayJob, submit
from megatron_kaiyuan.research.queue.task import ReadyRun

log = logging.getLogger(__name__)

# Between two looks at the folder, and two questions to Slurm's controller, which serves a whole site.
_LOOK_SECONDS, _ASK_SECONDS = 1.0, 5.0
# For the tasks of a cancelled array to end. Slurm lists a task whose node or step is gone for longer.
_SAVE_SECONDS = 120.0


def require_known(platforms: Set[str]) -> None:
    """Refuse `auto`: this machine is not one that trains, and a run's fingerprint holds its platform.

    Raises:
        UserError: it is among them.
    """
    if "auto" in platforms:
        raise UserError(
            "--engine slurm: the recipe's platform is auto, which the submitting machine cannot know of Slurm's nodes; "
            "set platform: cuda, npu or cpu in it"
        )


class ArrayQueue:
    """An array that works through a list, seen from the process that has submitted it.

    Args:
        tasks: of different fingerprints.
        command: what each task of the array runs.
    """

    def __init__(self, tasks: Sequence[ReadyRun], array: Array, command: Sequence[str], folder: Path):
        self._left = [task for task in tasks if not task.is_done]
        self._progress = RunCounter(len(tasks), len(tasks) - len(self._left), None)
        self._array = Array(min(array.tasks, len(self._left)), array.options)
        self._command, self._folder = command, folder
        self.failed: dict[str, str] = {}
        self.stopped_by = 0
        self.note = ""

    def work(self) -> None:
        """Return when every run is whole or has failed, or the array has ended, or after a signal.

        A lost terminal (SIGHUP) leaves the array at work; other signals cancel it, and its tasks save their runs.

        Raises:
            UserError: see `submit`.
        """
        job = submit(self._array, self._command, self._folder)
        failures = Failures(self._folder, job.number)
        for number in handled_signals():
            signal.signal(number, self._stop)
        asked, ended = time.monotonic(), False
        while self._left and not ended and not self.stopped_by:
            time.sleep(_LOOK_SECONDS)
            if time.monotonic() - asked > _ASK_SECONDS:
                asked, ended = time.monotonic(), job.has_ended()
            # After the question: what the array did before its end is seen.
            self._look(failures)
        self._leave(job, ended)

    def _look(self, failures: Failures) -> None:
        left = []
        for task in self._left:
            if task.is_done:
                self._progress.done(None)
            elif why := failures.of(task):
                self.failed[task.fingerprint] = why
                self._progress.failed(task.run.name, why)
            else:
                left.append(task)
        self._left = left

    def _leave(self, job: ArrayJob, ended: bool) -> None:
        if self.stopped_by == signal.SIGHUP:
            log.info(f"queue: job {job.number} continues; the same command collects what it has done")
            return
        if not ended:
            # If all is done, those at work end by themselves, and those that have not begun would find nothing to do.
            job.cancel(waiting_only=not self.stopped_by)
        if self.stopped_by:
            log.info(f"queue: job {job.number} is cancelled; waiting until its runs are saved")
            deadline = time.monotonic() + _SAVE_SECONDS
            while not job.has_ended() and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        if self._left:
            said = job.last_line()
            self.note = f"job {job.number} has ended before" + (f", its last line was: {said}" if said else "")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
