"""A list of runs as an array of Slurm's: each task works through the list, and locks share the work among them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class Array:
    """An array of tasks.

    Attributes:
        tasks: how many.
        options: of sbatch, such as `--gpus=1`, `--cpus-per-task=8`, `--time=2:00:00`.
    """

    tasks: int
    options: tuple[str, ...] = ()


def submit_and_wait(array: Array, command: Sequence[str], folder: Path) -> None:
    """Submit an array and wait for its end, however its tasks end: what they have done is in the folder.

    Raises:
        UserError: Slurm is not there, or does not take the job.
    """
    logs = folder.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    # A task is a single process, which the batch script becomes; threads as in `run_all`.
    script = f"export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1; exec {shlex.join(command)}"
    own = [f"--array=0-{array.tasks - 1}", "--job-name=kaiyuan-queue", f"--output={logs}/%A_%a.out", "--wait"]
    print(f"queue: {array.tasks} tasks are submitted to Slurm; their logs are in {logs}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *own, *array.options, f"--wrap={script}"], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise UserError("--engine slurm: sbatch was not found; submit from a node that has Slurm") from error
    if not done.stdout.strip():
        said = done.stderr.strip().splitlines()
        raise UserError(f"--engine slurm: sbatch refused the job: {said[-1] if said else done.returncode}")
