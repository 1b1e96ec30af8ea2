"""Works through a list of runs: a process that has imported what they need, and a fork of it for each run.

    python -m megatron_kaiyuan.research.queue.worker FOLDER/lists/IDENTITY.json [--slots N] [--no-wait]

Importing torch and Megatron Core takes longer than a small run. This process calls nothing of torch and has no thread
but a library's (pyarrow's allocator, which knows of forks), so that a fork of it is as good as a fresh process. Its
standard output is one JSON object, an `Outcome`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
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
from megatron_kaiyuan.research.queue.progress import Progress
from megatron_kaiyuan.research.queue.request import Run, read_list
from megatron_kaiyuan.research.queue.slots import find_platform, find_slots
from megatron_kaiyuan.research.queue.task import ELSEWHERE, Task, Tasks, row_of

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
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
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    error: str | None = None
    stopped_by: int = 0


class Worker:
    """Has the runs trained that are not whole, as many at a time as there are slots.

    Args:
        tasks: of different fingerprints.
        slots: the environment of each, see `find_slots`.
        action: what a fork does with a task; its exit code.
        wait: also wait for runs that other queues are at work on, and do them if those give up.
    """

    def __init__(self, tasks: Sequence[Task], slots: Sequence[Slot], action: Action, wait: bool = True):
        self._todo = deque(task for task in tasks if not task.is_done)
        self._free, self._action, self._wait = list(slots), action, wait
        self._at_work: dict[int, tuple[Task, Slot, float]] = {}
        self._elsewhere: deque[Task] = deque()
        self._looked = time.monotonic()
        self._progress = Progress(len(tasks), len(tasks) - len(self._todo), len(slots))
        self.failed: dict[str, str] = {}
        self.stopped_by = 0

    def work(self) -> None:
        """Return when every run is whole or has failed, or after a signal, when those at work have been saved."""
        for number in _SIGNALS:
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
            elif not self.stopped_by:
                self.failed[task.fingerprint] = why = _why(task, code)
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


def work_through(path: Path, count: int | None, wait: bool) -> Outcome:
    """Train the runs of a list that are not whole; everything is resolved before the first one is begun.

    Args:
        count: runs at the same time; None: one a core or a device; 0: none, only collect what is there.
    """
    try:
        runs, folder = read_list(path), path.parent.parent
        tasks = _resolve(runs, folder)
        name = tasks[0].platform
        different = {task.fingerprint: task for task in tasks}
        slots = [] if count == 0 else find_slots(name, count)
    except (UserError, OSError) as error:
        return Outcome(error=describe(error))
    failed, stopped_by = {}, 0
    if slots and not all(task.is_done for task in different.values()):
        _import_for(name, any(task.run.tasks for task in tasks))
        worker = Worker(list(different.values()), slots, _train, wait)
        worker.work()
        failed, stopped_by = worker.failed, worker.stopped_by
    return _outcome(tasks, failed, stopped_by)


def _resolve(runs: Sequence[Run], folder: Path) -> list[Task]:
    maker = Tasks(folder)
    configs = [maker.load(run) for run in runs]
    name = find_platform({config.platform for config in configs})
    return [maker.make(run, config, name) for run, config in zip(runs, configs, strict=True)]


def _outcome(tasks: Sequence[Task], failed: Mapping[str, str], stopped_by: int) -> Outcome:
    outcome = Outcome(stopped_by=stopped_by)
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
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return process
    code = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        parent.end_with_parent(signal.SIGKILL)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
    parser.add_argument("--no-wait", action="store_true", help="leave runs to other queues that are at work on them")
    given = parser.parse_args(arguments)
    if parent.VARIABLE in os.environ:
        # Runs at work are saved, then this process ends.
        parent.end_with_parent(signal.SIGTERM, int(os.environ[parent.VARIABLE]))
    outcome = work_through(given.list, given.slots, not given.no_wait)
    print(json.dumps(asdict(outcome)), flush=True)
    if outcome.error:
        print(f"error: {outcome.error}", file=sys.stderr, flush=True)
    if outcome.stopped_by:
        return 128 + outcome.stopped_by
    return 2 if outcome.error or outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
