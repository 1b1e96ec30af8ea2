"""launch/msrun.sh with MindSpore's real launcher, from an environment of its own, beside the project's.

    bash tests/run.sh -m slow tests/launch/test_msrun.py

Its CPU wheel is a download of 2.8 GB, which makes this slow; KAIYUAN_TEST_MSRUN=FOLDER is an environment that has it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.processes.launched import Job, launched, succeed
from tests.helpers.training.small_run import losses, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_losses_are_those_of_torchrun(
    recipe: Path, losses_under_torchrun: list[float], msrun: dict[str, str], tmp_path: Path
) -> None:
    output = succeed("msrun.sh", "--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", environ=msrun)
    assert losses(tmp_path) == losses_under_torchrun
    assert "train: step 20/20" in (tmp_path / "msrun" / "worker_0.log").read_text()
    assert output.count("train: step 20/20") == 1


def script_itself(job: Job) -> int:
    return job.script.pid


def a_rank(job: Job) -> int:
    return max(job.ranks())


@pytest.mark.parametrize(
    ("victim", "number", "code", "saves"),
    [
        (script_itself, signal.SIGTERM, 143, True),
        (script_itself, signal.SIGHUP, 129, True),
        (script_itself, signal.SIGINT, 130, True),
        (script_itself, signal.SIGUSR1, 138, True),
        (script_itself, signal.SIGKILL, -9, False),
        (Job.launcher, signal.SIGKILL, 137, False),
        (Job.launcher, signal.SIGTERM, 143, False),
        (a_rank, signal.SIGKILL, 137, False),
    ],
)
def test_no_process_is_left(
    victim: Callable[[Job], int],
    number: int,
    code: int,
    saves: bool,
    recipe: Path,
    msrun: dict[str, str],
    tmp_path: Path,
) -> None:
    arguments = ["--nproc-per-node", 2, recipe, f"run_dir={tmp_path}", "train.train_tokens=null"]
    with launched("msrun.sh", *arguments, "checkpoint.save_every_steps=1000", environ=msrun) as job:
        job.wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 2)
        os.kill(victim(job), number)
        job.require_gone()
        assert job.script.returncode == code
    newest = (tmp_path / "latest").read_text().strip()
    assert newest == (f"step_{max(metrics(tmp_path))}" if saves else "step_0")
