"""launch/mpirun.sh with MPICH, which cannot share an environment with Open MPI.

bash tests/run.sh -m slow tests/launch/test_mpich.py    # installs MPICH from PyPI into a folder of its own
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.processes.launched import launched, succeed
from tests.helpers.training.small_run import losses, metrics

pytestmark = pytest.mark.slow


def test_losses_are_those_of_torchrun(
    mpich: dict[str, str], recipe: Path, losses_under_torchrun: list[float], tmp_path: Path
) -> None:
    output = succeed("mpirun.sh", "--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", environ=mpich)
    assert "'-ppn'" in output
    assert losses(tmp_path) == losses_under_torchrun


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGKILL, 137)],
)
def test_no_process_is_left(
    mpich: dict[str, str], number: signal.Signals, code: int, recipe: Path, tmp_path: Path
) -> None:
    """Signals go to the script, except for the one that kills, which goes to a rank."""
    arguments = ["--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", "train.train_tokens=null"]
    with launched("mpirun.sh", *arguments, "checkpoint.save_every_steps=1000", environ=mpich) as job:
        job.wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 2)
        os.kill(max(job.ranks()) if number == signal.SIGKILL else job.script.pid, number)
        job.require_gone()
        assert job.script.returncode == code
    if number != signal.SIGKILL:
        assert (tmp_path / "latest").read_text().strip() == f"step_{max(metrics(tmp_path))}"
