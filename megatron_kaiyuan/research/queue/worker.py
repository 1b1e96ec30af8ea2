"""Works through a list of runs: a process that has imported what they need, and a fork of it for each run.

    python -m megatron_kaiyuan.research.queue.worker FOLDER/lists/IDENTITY.json [--slots N] [--array N]

Importing torch and Megatron Core takes longer than a small run. This process calls nothing of torch and has no thread
but a library's (pyarrow's allocator, which knows of forks), so that a fork of it is as good as a fresh process. Its
standard output is one JSON object, an `Outcome`. With --array it trains nothing: it submits an array whose tasks are
such processes, and waits for them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_kaiyuan import logs, platform
from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.errors import UserError, describe, require
from megatron_kaiyuan.research.queue.failures import Failures
from megatron_kaiyuan.research.queue.local import LocalQueue, Slot
from megatron_kaiyuan.research.queue.request import Run, read_list
from megatron_kaiyuan.research.queue.slots import find_platform, find_slots
from megatron_kaiyuan.research.queue.slurm import Array
from megatron_kaiyuan.research.queue.task import ReadyRun, Tasks, row_of
from megatron_kaiyuan.research.queue.waiting import ArrayQueue, require_known

MODULE = "megatron_kaiyuan.research.queue.worker"
log = logging.getLogger(MODULE)


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
            waiting = ArrayQueue(different, array, _task_command(path, count), folder)
            waiting.work()
            return _outcome(tasks, waiting.failed, waiting.stopped_by, waiting.note)
        name = tasks[0].platform
        slots = find_slots(name, count)
    except (UserError, OSError) as error:
        return Outcome(error=describe(error))
    _import_for(name, any(task.run.tasks for task in tasks))
    queue = LocalQueue(different, slots, _train, Failures(folder, attempt) if attempt else None)
    queue.work()
    return _outcome(tasks, queue.failed, queue.stopped_by)


def _task_command(path: Path, count: int | None) -> list[str]:
    slots = [] if count is None else ["--slots", str(count)]
    return [sys.executable, "-m", MODULE, str(path.resolve()), *slots]


def _resolve(runs: Sequence[Run], folder: Path, elsewhere: bool) -> list[ReadyRun]:
    maker = Tasks(folder)
    configs = [maker.load(run) for run in runs]
    wanted: set[str] = {config.platform for config in configs}
    if elsewhere:
        require_known(wanted)
    name = find_platform(wanted)
    return [maker.make(run, config, name) for run, config in zip(runs, configs, strict=True)]


def _outcome(
    tasks: Sequence[ReadyRun], failed: Mapping[str, str] | None = None, stopped_by: int = 0, note: str = ""
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


def _train(task: ReadyRun, slot: Slot) -> int:
    os.environ.update(slot)
    platform.activate(task.platform)
    # Only now: a platform has to be active before megatron-core is imported.
    from megatron_kaiyuan.research.queue.training import run_to_result

    return run_to_result(task)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="megatron_kaiyuan.research.queue.worker", description=__doc__.split("\n")[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("--slots", type=int, default=None, help="runs at the same time; 0: only collect what is there")
    parser.add_argument("--attempt", default=None, help="as a task of this array: leave runs to its other tasks")
    parser.add_argument("--array", type=int, default=None, help="have a Slurm array of so many tasks do the work")
    parser.add_argument("--sbatch", default="", help="options of sbatch, as one word")
    given = parser.parse_args(arguments)
    logs.set_up()
    if parent.VARIABLE in os.environ:
        # Runs at work are saved, then this process ends.
        parent.end_with_parent(signal.SIGTERM, int(os.environ[parent.VARIABLE]))
    array = Array(given.array, tuple(shlex.split(given.sbatch))) if given.array else None
    outcome = work_through(given.list, given.slots, given.attempt, array)
    print(json.dumps(asdict(outcome)), flush=True)
    if outcome.error:
        log.error(outcome.error)
    if outcome.stopped_by:
        return 128 + outcome.stopped_by
    return 2 if outcome.error or outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
