"""The call that turns a list of runs into rows: locally, or as an array of Slurm's."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue.request import Run, write_list
from megatron_kaiyuan.research.queue.signals import handled_signals
from megatron_kaiyuan.research.queue.slots import ONE_THREAD
from megatron_kaiyuan.research.queue.slurm import Array
from megatron_kaiyuan.research.queue.table import write_table

# Not imported: it is a process of its own.
_WORKER = "megatron_kaiyuan.research.queue.worker"


def run_all(
    folder: Path, runs: Sequence[Run], slots: int | None = None, array: Array | None = None
) -> list[dict[str, Any]]:
    """Train and measure every run of a list that is not whole yet.

    Runs of one fingerprint are trained once. Several calls on one folder, on any machines that share it, divide the
    work. After a kill the same call continues. The table is also written to `folder`.

    Args:
        folder: of the queue; the place of runs, made if it is not there.
        slots: runs at the same time; None: one a CPU core, or one a device. With an array: in each of its tasks.
        array: have Slurm do the work; this process only waits and collects.

    Returns:
        A row for each run in the order of `runs`: name, labels, fingerprint, steps, tokens, parameters, seconds (of the
        process that ended it), training_seconds (of its steps), bits_per_byte/DOMAIN and bits_per_byte/task:NAME.

    Raises:
        UserError: a run cannot be begun, and none was; or some have failed, when the others have ended.
        KeyboardInterrupt: ctrl-C; runs that were at work have been saved.
        SystemExit: the same after another signal, with 128 and its number.
    """
    path = write_list(folder, runs)
    outcome = _work(path, slots, array)
    if outcome["error"]:
        raise UserError(outcome["error"])
    write_table(folder, outcome["rows"])
    if stopped_by := outcome["stopped_by"]:
        raise KeyboardInterrupt if stopped_by == signal.SIGINT else SystemExit(128 + stopped_by)
    if failed := outcome["failed"]:
        name, why = next(iter(failed.items()))
        raise UserError(
            f"{folder}: {len(failed)} of {len(runs)} runs failed, such as {name!r}: {why}; the same command tries them "
            "again"
        )
    if missing := outcome["missing"]:
        raise UserError(
            f"{folder}: {len(missing)} of {len(runs)} runs are not whole, such as {missing[0]!r}; "
            f"{outcome['note'] or 'they were stopped'}; the same command continues"
        )
    return outcome["rows"]


@contextlib.contextmanager
def _passed_on(worker: subprocess.Popen[str]) -> Iterator[None]:
    """Pass signals on to the worker, which saves and ends. Those of a terminal come to it twice, which is once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda got, frame: worker.send_signal(got)) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(path: Path, slots: int | None, array: Array | None) -> dict[str, Any]:
    command = [sys.executable, "-m", _WORKER, str(path)]
    if slots is not None:
        command += ["--slots", str(slots)]
    if array is not None:
        command += ["--array", str(array.tasks), f"--sbatch={shlex.join(array.options)}"]
    environ = {**os.environ, **ONE_THREAD, parent.VARIABLE: str(os.getpid())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as worker, _passed_on(worker):
        printed, _ = worker.communicate()
    try:
        return json.loads(printed)
    except ValueError:
        raise UserError(
            f"queue: the process that trains the runs ended with code {worker.returncode} before its time; the same "
            "command continues"
        ) from None
