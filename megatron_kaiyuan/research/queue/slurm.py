"""A list of runs as an array of Slurm's: each task works through the list, and locks share the work among them."""

from __future__ import annotations

import getpass
import logging
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue.slots import ONE_THREAD

log = logging.getLogger(__name__)

_SECONDS = 60


@dataclass(frozen=True)
class Array:
    """An array of tasks.

    Attributes:
        tasks: how many at most; never more than there are runs to do.
        options: of sbatch, such as `--gpus=1`, `--cpus-per-task=8`, `--time=2:00:00`.
    """

    tasks: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArrayJob:
    """An array that Slurm has taken.

    Attributes:
        number: of the job.
        logs: folder with a log of each task.
    """

    number: str
    logs: Path

    def has_ended(self) -> bool:
        """Whether no task is left; False also where Slurm does not answer, which says nothing about the tasks."""
        try:
            done = _ask("squeue", "--noheader", f"--jobs={self.number}")
        except subprocess.TimeoutExpired:
            return False
        # Ended jobs are forgotten after a while (MinJobAge).
        return not done.stdout.strip() and (not done.returncode or "Invalid job id" in done.stderr)

    def cancel(self, waiting_only: bool = False) -> None:
        """Ask for the end of all tasks, or of those that have not begun; those at work save their runs first.

        They have the site's KillWait for it.
        """
        try:
            _ask("scancel", "--quiet", *(["--state=PENDING"] if waiting_only else []), self.number)
        except subprocess.TimeoutExpired:
            log.warning(f"queue: scancel {self.number} got no answer from Slurm; repeat it")

    def last_line(self) -> str:
        """What the task that wrote last has printed last, and its log; empty where none has."""
        written = sorted(self.logs.glob(f"{self.number}_*.out"), key=lambda path: path.stat().st_mtime)
        for path in reversed(written):
            # A whole task ends with its outcome for programs.
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
            lines = [line for line in lines if not line.startswith("{")]
            if lines:
                return f"{lines[-1]} ({path})"
        return ""


def submit(array: Array, command: Sequence[str], folder: Path) -> ArrayJob:
    """Submit an array whose tasks run `command --attempt JOB`.

    Args:
        folder: for the logs of tasks; seen under the same path by every node.

    Raises:
        UserError: Slurm is not there, or does not take the job.
    """
    logs = folder.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    # A task is a single process, which the batch script becomes. It has no parent here.
    threads = " ".join(f"{name}={value}" for name, value in ONE_THREAD.items())
    script = f'unset {parent.VARIABLE}; export {threads}; exec {shlex.join(command)} --attempt "$SLURM_ARRAY_JOB_ID"'
    own = [f"--array=0-{array.tasks - 1}", "--job-name=kaiyuan-queue", f"--output={logs}/%A_%a.out"]
    try:
        done = _ask("sbatch", "--parsable", *own, *array.options, f"--wrap={script}")
    except FileNotFoundError as error:
        raise UserError("--engine slurm: sbatch was not found; submit from a node that has Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"--engine slurm: sbatch got no answer in {_SECONDS} s; look with 'squeue --user {getpass.getuser()}' "
            "whether the job was taken"
        ) from error
    # With --parsable: NUMBER, or NUMBER;CLUSTER.
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number:
        said = done.stderr.strip().splitlines()
        raise UserError(f"--engine slurm: sbatch refused the job: {said[-1] if said else done.returncode}")
    log.info(f"queue: job {number}, {array.tasks} tasks, is submitted; their logs are in {logs}")
    return ArrayJob(number, logs)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
