"""Works through a list of runs: a process that has imported what they need, and a fork of it for each run.

    python -m megatron_kaiyuan.research.queue.worker FOLDER/lists/IDENTITY.json [--slots N] [--array N]

Importing torch and Megatron Core takes longer than a small run. This process calls nothing of torch and has no thread
but a library's (pyarrow's allocator, which knows of forks), so that a fork of it is as good as a fresh process. Its
standard output is one JSON object, an `Outcome`. With --array it trains nothing: it submits an array whose tasks are
such processes, and waits for them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.errors import UserError, describe, require
from megatron_kaiyuan.research.queue.failures import Failures
from megatron_kaiyuan.research.queue.progress import Progress
from megatron_kaiyuan.research.queue.request import Run, read_list
from megatron_kaiyuan.research.queue.signals import STOPPING, handled_signals
from megatron_kaiyuan.research.queue.slots import find_platform, find_slots
from megatron_kaiyuan.research.queue.slurm import Array
from megatron_kaiyuan.research.queue.task import ELSEWHERE, Task, Tasks, row_of
from megatron_kaiyuan.research.queue.waiting import ArrayQueue, require_known

MODULE = "megatron_kaiyuan.research.queue.worker"
_PAUSE_SECONDS, _ELSEWHERE_SECONDS = 0.01, 0.5
_LOG_TAIL_BYTES = 4096

Slot = Mapping[str, str]
Action = Callable[[Task, Slot], int]


@dataclass
class Outcome:
    """What became of a list.

    Attributes:
        rows: of the table, for the runs that are whole, in the order of the list.
        failed: by name of the run, why.
        missing: names of runs that are neither.
        error: a mistake for which nothing was begun.
        stopped_by: number of the signal that ended the work; 0: none.
        note: what is known of the end of an array that has left runs missing.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    error: str | None = None
    stopped_by: int = 0
    note: str = ""


class Worker:
    """Has the runs trained that are not whole, as many at a time as there are slots.

    Args:
        tasks: of different fingerprints.
        slots: the environment of each, see `find_slots`.
        action: what a fork does with a task; its exit code.
        failures: of the array that this is a task of: runs that others are at work on, or that have failed for them,
            are left to them. None: wait for other queues' runs, and do them if those give up.
    """

    def __init__(self, tasks: Sequence[Task], slots: Sequence[Slot], action: Action, failures: Failures | None = None):
        self._todo = deque(task for task in tasks if not task.is_done)
        self._free, self._action, self._failures, self._wait = list(slots), action, failures, failures is None
        self._at_work: dict[int, tuple[Task, Slot, float]] = {}
        self._elsewhere: deque[Task] = deque()
        self._looked = time.monotonic()
        self._progress = Progress(len(tasks), len(tasks) - len(self._todo), len(slots))
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

    def _begin(self, task: Task) -> None:
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
                print(f"queue: run {task.run.name!r} was stopped before its end", file=sys.stderr, flush=True)
            else:
                why = _why(task, code)
                if self._failures:
                    self._failures.add(task, why)
                self._note_failure(task, why)

    def _note_failure(self, task: Task, why: str) -> None:
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


def work_through(path: Path, count: int | None, attempt: str | None = None, array: Array | None = None) -> Outcome:
    """Train the runs of a list that are not whole; everything is resolved before the first one is begun.

    Args:
        count: runs at the same time; None: one a core or a device; 0: none, only collect what is there.
        attempt: the array that this process is a task of.
        array: submit this array, and only wait; `count` is then that of each of its tasks.
    """
    try:
        runs, folder = read_list(path), path.parent.parent
        tasks = _resolve(runs, folder, array is not None)
        different = list({task.fingerprint: task for task in tasks}.values())
        if count == 0 or all(task.is_done for task in different):
            return _outcome(tasks)
        if array is not None:
            queue = ArrayQueue(different, array, _task_command(path, count), folder)
            queue.work()
            return _outcome(tasks, queue.failed, queue.stopped_by, queue.note)
        name = tasks[0].platform
        slots = find_slots(name, count)
    except (UserError, OSError) as error:
        return Outcome(error=describe(error))
    _import_for(name, any(task.run.tasks for task in tasks))
    worker = Worker(different, slots, _train, Failures(folder, attempt) if attempt else None)
    worker.work()
    return _outcome(tasks, worker.failed, worker.stopped_by)


def _task_command(path: Path, count: int | None) -> list[str]:
    slots = [] if count is None else ["--slots", str(count)]
    return [sys.executable, "-m", MODULE, str(path.resolve()), *slots]


def _resolve(runs: Sequence[Run], folder: Path, elsewhere: bool) -> list[Task]:
    maker = Tasks(folder)
    configs = [maker.load(run) for run in runs]
    wanted: set[str] = {config.platform for config in configs}
    if elsewhere:
        require_known(wanted)
    name = find_platform(wanted)
    return [maker.make(run, config, name) for run, config in zip(runs, configs, strict=True)]


def _outcome(
    tasks: Sequence[Task], failed: Mapping[str, str] | None = None, stopped_by: int = 0, note: str = ""
) -> Outcome:
    outcome, failed = Outcome(stopped_by=stopped_by, note=note), failed or {}
    for task in tasks:
        result = task.result()
        if result is not None:
            outcome.rows.append(row_of(task, result))
        elif task.fingerprint in failed:
            outcome.failed[task.run.name] = failed[task.fingerprint]
        else:
            outcome.missing.append(task.run.name)
    return outcome


def _import_for(name: str, tasks: bool) -> None:
    """Import what every run needs; on an accelerator only what touches none, which ends at torch."""
    if name == "cpu":
        platform.activate("cpu")
        from megatron_kaiyuan.research.queue import training  # noqa: F401

        if tasks:
            require("lm_eval.models.huggingface", extra="eval", purpose="a task of lm-eval")
    else:
        import torch  # noqa: F401


def _train(task: Task, slot: Slot) -> int:
    os.environ.update(slot)
    platform.activate(task.platform)
    # Only now: a platform has to be active before megatron-core is imported.
    from megatron_kaiyuan.research.queue.training import run_to_result

    return run_to_result(task)


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


def _why(task: Task, code: int) -> str:
    ending = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    try:
        with open(task.log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ending
    said = [line for line in lines if line.strip()][-1:] if code > 0 else []
    return f"{ending} ({'; '.join([*said, f'its log is {task.log}'])})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="megatron_kaiyuan.research.queue.worker", description=__doc__.split("\n")[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("--slots", type=int, default=None, help="runs at the same time; 0: only collect what is there")
    parser.add_argument("--attempt", default=None, help="as a task of this array: leave runs to its other tasks")
    parser.add_argument("--array", type=int, default=None, help="have a Slurm array of so many tasks do the work")
    parser.add_argument("--sbatch", default="", help="options of sbatch, as one word")
    given = parser.parse_args(arguments)
    if parent.VARIABLE in os.environ:
        # Runs at work are saved, then this process ends.
        parent.end_with_parent(signal.SIGTERM, int(os.environ[parent.VARIABLE]))
    array = Array(given.array, tuple(shlex.split(given.sbatch))) if given.array else None
    outcome = work_through(given.list, given.slots, given.attempt, array)
    print(json.dumps(asdict(outcome)), flush=True)
    if outcome.error:
        print(f"error: {outcome.error}", file=sys.stderr, flush=True)
    if outcome.stopped_by:
        return 128 + outcome.stopped_by
    return 2 if outcome.error or outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
