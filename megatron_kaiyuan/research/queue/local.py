"""Has a list of runs trained on this machine: a fork of this process for each, as many at a time as there are slots."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.research.queue.failures import Failures
from megatron_kaiyuan.research.queue.progress import RunCounter
from megatron_kaiyuan.research.queue.signals import STOPPING, handled_signals
from megatron_kaiyuan.research.queue.task import ELSEWHERE, ReadyRun

log = logging.getLogger(__name__)

_PAUSE_SECONDS, _ELSEWHERE_SECONDS = 0.01, 0.5
_LOG_TAIL_BYTES = 4096

Slot = Mapping[str, str]
Action = Callable[[ReadyRun, Slot], int]


class LocalQueue:
    """Has the runs trained that are not whole, as many at a time as there are slots.

    Args:
        tasks: of different fingerprints.
        slots: the environment of each, see `find_slots`.
        action: what a fork does with a task; its exit code.
        failures: of the array that this is a task of: runs that others are at work on, or that have failed for them,
            are left to them. None: wait for other queues' runs, and do them if those give up.
    """

    def __init__(
        self, tasks: Sequence[ReadyRun], slots: Sequence[Slot], action: Action, failures: Failures | None = None
    ):
        self._todo = deque(task for task in tasks if not task.is_done)
        self._free, self._action, self._failures, self._wait = list(slots), action, failures, failures is None
        self._at_work: dict[int, tuple[ReadyRun, Slot, float]] = {}
        self._elsewhere: deque[ReadyRun] = deque()
        self._looked = time.monotonic()
        self._progress = RunCounter(len(tasks), len(tasks) - len(self._todo), len(slots))
        self.failed: dict[str, str] = {}
        self.stopped_by = 0

    def work(self) -> None:
        """Return when every run is whole or has failed, or after a signal, when those at work have been saved."""
        for number in handled_signals():
            signal.signal(number, self._stop)
        while self._at_work or (not self.stopped_by and (self._todo or (self._elsewhere and self._wait))):
            self._collect()
            if not self.stopped_by:
                self._look_elsewhere()
                while self._free and self._todo:
                    self._begin(self._todo.popleft())
            time.sleep(_PAUSE_SECONDS)

    def _begin(self, task: ReadyRun) -> None:
        if task.is_done:
            self._progress.done(None)
            return
        if self._failures and (why := self._failures.of(task)):
            self._note_failure(task, why)
            return
        slot = self._free.pop(0)
        self._at_work[_fork(functools.partial(self._action, task, slot))] = task, slot, time.monotonic()

    def _collect(self) -> None:
        for process in list(self._at_work):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            task, slot, started = self._at_work.pop(process)
            self._free.append(slot)
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                self._progress.done(time.monotonic() - started)
            elif code == ELSEWHERE:
                self._elsewhere.append(task)
            elif self.stopped_by:
                pass
            elif _signal_of(code) in STOPPING:
                # No failure: it has saved what it had. Who asked it to end may be about to ask this process.
                log.info(f"queue: run {task.run.name!r} was stopped before its end")
            else:
                why = _why(task, code)
                if self._failures:
                    self._failures.add(task, why)
                self._note_failure(task, why)

    def _note_failure(self, task: ReadyRun, why: str) -> None:
        self.failed[task.fingerprint] = why
        self._progress.failed(task.run.name, why)

    def _look_elsewhere(self) -> None:
        if self._wait and time.monotonic() - self._looked > _ELSEWHERE_SECONDS:
            self._todo.extend(self._elsewhere)
            self._elsewhere.clear()
            self._looked = time.monotonic()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
        for process in self._at_work:
            os.kill(process, signal.SIGTERM)


def _fork(action: Callable[[], int]) -> int:
    """Run an action in a child, with the system's own signal handlers; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        return process
    code = 1
    try:
        for number in handled_signals():
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        parent.end_with_parent(signal.SIGKILL)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _signal_of(code: int) -> int:
    """The signal that ended a process, or that it says it was stopped by; 0 or less for none."""
    return -code if code < 0 else code - 128


def _why(task: ReadyRun, code: int) -> str:
    ending = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    try:
        with open(task.log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ending
    said = [line for line in lines if line.strip()][-1:] if code > 0 else []
    return f"{ending} ({'; '.join([*said, f'its log is {task.log}'])})"
