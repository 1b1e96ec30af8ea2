"""The call that turns a list of runs into rows: locally, or as an array of Slurm's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue.request import Run, write_list
from megatron_kaiyuan.research.queue.slurm import Array, submit_and_wait
from megatron_kaiyuan.research.queue.table import write_table

_WORKER = "megatron_kaiyuan.research.queue.worker"


def run_all(
    folder: Path, runs: Sequence[Run], slots: int | None = None, array: Array | None = None
) -> list[dict[str, Any]]:
    """Train and measure every run of a list that is not whole yet.

    Runs of one fingerprint are trained once. Several calls on one folder, on any machines that share it, divide the
    work. After a kill the same call continues. The table is also written to `folder`.

    Args:
        folder: of the queue; the place of runs, made if it is not there.
        slots: runs at the same time; None: one a CPU core, or one a device.
        array: have Slurm do the work; this process only waits and collects.

    Returns:
        A row for each run in the order of `runs`: name, labels, fingerprint, steps, tokens, parameters, seconds (of the
        process that ended it), training_seconds (of its steps), bits_per_byte/DOMAIN and bits_per_byte/task:NAME.

    Raises:
        UserError: a run cannot be begun, and none was; or some have failed, when the others have ended.
        KeyboardInterrupt: the work was stopped; runs that were at work have been saved.
    """
    path = write_list(folder, runs)
    if array is not None:
        submit_and_wait(array, [sys.executable, "-m", _WORKER, str(path.resolve()), "--no-wait"], folder)
        slots = 0
    outcome = _work(path, slots)
    if outcome["error"]:
        raise UserError(outcome["error"])
    write_table(folder, outcome["rows"])
    if outcome["stopped_by"]:
        raise KeyboardInterrupt
    if failed := outcome["failed"]:
        name, why = next(iter(failed.items()))
        raise UserError(
            f"{folder}: {len(failed)} of {len(runs)} runs failed, such as {name!r}: {why}; the same command tries them "
            "again"
        )
    if missing := outcome["missing"]:
        raise UserError(
            f"{folder}: {len(missing)} of {len(runs)} runs are not whole, such as {missing[0]!r}; look at the array's "
            "logs there, then give the same command again"
        )
    return outcome["rows"]


def _work(path: Path, slots: int | None) -> dict[str, Any]:
    command = [sys.executable, "-m", _WORKER, str(path)]
    if slots is not None:
        command += ["--slots", str(slots)]
    # One thread a run; a library that made threads of its own would make forks of the worker unsafe.
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environ = {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", parent.VARIABLE: str(os.getpid())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as worker:
        try:
            printed, _ = worker.communicate()
        except KeyboardInterrupt:
            # From the terminal it comes to the worker as well; from elsewhere it does not.
            worker.send_signal(signal.SIGTERM)
            printed, _ = worker.communicate()
    try:
        return json.loads(printed)
    except ValueError:
        raise UserError(
            f"queue: the process that trains the runs ended with code {worker.returncode} before its time; the same "
            "command continues"
        ) from None
