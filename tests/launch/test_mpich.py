"""launch/mpirun.sh with MPICH, which cannot share an environment with Open MPI.

python3 -m pip install --no-deps --prefix /tmp/mpich mpich
KAIYUAN_TEST_MPICH=/tmp/mpich/bin bash tests/run.sh -m slow tests/launch/test_mpich.py
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from launched import launched, succeed
from small_run import losses, metrics

WHERE = Path(os.environ.get("KAIYUAN_TEST_MPICH", "/nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (WHERE / "mpirun").exists(), reason="KAIYUAN_TEST_MPICH names no MPICH"),
]
ENVIRON = {"PATH": f"{WHERE}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_losses_are_those_of_torchrun(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    output = succeed("mpirun.sh", "--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", environ=ENVIRON)
    assert "'-ppn'" in output
    assert losses(tmp_path) == losses_under_torchrun


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGKILL, 137)]
)
def test_no_process_is_left(number: signal.Signals, code: int, recipe: Path, tmp_path: Path) -> None:
    """Signals go to the script, except for the one that kills, which goes to a rank."""
    arguments = ["--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", "train.train_tokens=null"]
    with launched("mpirun.sh", *arguments, "checkpoint.save_every_steps=1000", environ=ENVIRON) as job:
        job.wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 2)
        os.kill(max(job.ranks()) if number == signal.SIGKILL else job.script.pid, number)
        job.require_gone()
        assert job.script.returncode == code
    if number != signal.SIGKILL:
        assert (tmp_path / "latest").read_text().strip() == f"step_{max(metrics(tmp_path))}"
