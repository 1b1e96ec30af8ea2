"""However a job is ended, no process of it is left, and the script's exit code says what happened.

bash tests/run.sh -m slow tests/launch/test_ends.py    # all launchers and ways; without "slow" the worst one
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes.launched import Job, launched
from tests.helpers.processes.ranks import free_port
from tests.helpers.training.small_run import metrics

# Hundreds of steps.
LONG = ["checkpoint.save_every_steps=1000", "train.train_tokens=null"]
SAVED = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGUSR1: 138}


def _training(script: str, recipe: Path, run_dir: Path, *options: object, processes: int = 2):
    arguments = ["--nproc-per-node", processes, *options, recipe, f"run_dir={run_dir}", *LONG]
    return launched(script, *arguments)


def _has_trained(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= 2


def _require_saved(run_dir: Path) -> None:
    assert (run_dir / "latest").read_text().strip() == f"step_{max(metrics(run_dir))}" != "step_0"


def _end_in_mid_run(job: Job, run_dir: Path, victim, number: int) -> None:
    job.wait_for(lambda: _has_trained(run_dir))
    os.kill(victim(job), number)
    job.require_gone()


def script_itself(job: Job) -> int:
    return job.script.pid


def a_rank(job: Job) -> int:
    return max(job.ranks())


@pytest.mark.slow
def test_killed_torchrun_takes_its_ranks_along(recipe: Path, tmp_path: Path) -> None:
    with _training("torchrun.sh", recipe, tmp_path) as job:
        _end_in_mid_run(job, tmp_path, Job.launcher, signal.SIGKILL)
        assert job.script.returncode == 137
    assert (tmp_path / "latest").read_text().strip() == "step_0"


def test_torchrun_killed_while_its_ranks_meet(recipe: Path, tmp_path: Path) -> None:
    """Rank 0 waits in the rendezvous for a rank that never comes: that is where orphans were seen."""
    with _training("torchrun.sh", recipe, tmp_path) as job:
        job.wait_for(lambda: len(job.ranks()) == 2)
        rank_0, other = job.ranks()
        os.kill(other, signal.SIGSTOP)
        # It has opened its store, or waits for the other's.
        job.wait_for(lambda: psutil.Process(rank_0).net_connections())
        os.kill(job.launcher(), signal.SIGKILL)
        # It was stopped before it could ask for its end, and has to find out for itself.
        os.kill(other, signal.SIGCONT)
        job.require_gone()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
@pytest.mark.parametrize("number", SAVED)
def test_signal_to_the_script_saves_first(script: str, number: signal.Signals, recipe: Path, tmp_path: Path) -> None:
    with _training(script, recipe, tmp_path) as job:
        _end_in_mid_run(job, tmp_path, script_itself, number)
        assert job.script.returncode == SAVED[number]
    _require_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options"), [("torchrun.sh", ["--restarts", 3]), ("mpirun.sh", [])])
def test_lost_output_and_a_lost_terminal_lose_no_step(script: str, options: list, recipe: Path, tmp_path: Path) -> None:
    """The reader of both streams goes away in mid-run: what script, launcher and ranks print then is lost."""
    with _training(script, recipe, tmp_path, *options) as job:
        job.wait_for(lambda: _has_trained(tmp_path))
        for stream in (job.script.stdout, job.script.stderr):
            assert stream is not None
            stream.close()
        job.script.send_signal(signal.SIGHUP)
        job.script.send_signal(signal.SIGHUP)
        job.require_gone()
        assert job.script.returncode == 129
    _require_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_a_rank_that_is_asked_alone_ends_the_run_as_unfinished(script: str, recipe: Path, tmp_path: Path) -> None:
    with _training(script, recipe, tmp_path) as job:
        _end_in_mid_run(job, tmp_path, a_rank, signal.SIGTERM)
        assert job.script.returncode == 143
    _require_saved(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_killed_rank(script: str, recipe: Path, tmp_path: Path) -> None:
    with _training(script, recipe, tmp_path) as job:
        _end_in_mid_run(job, tmp_path, a_rank, signal.SIGKILL)
        assert job.script.returncode == 137


@pytest.mark.slow
def test_killed_mpirun_takes_its_ranks_along(recipe: Path, tmp_path: Path) -> None:
    with _training("mpirun.sh", recipe, tmp_path) as job:
        _end_in_mid_run(job, tmp_path, Job.launcher, signal.SIGKILL)
        assert job.script.returncode == 137


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options"), [("torchrun.sh", ["--restarts", 3]), ("mpirun.sh", [])])
def test_killed_script_takes_its_launcher_along(script: str, options: list, recipe: Path, tmp_path: Path) -> None:
    with _training(script, recipe, tmp_path, *options) as job:
        _end_in_mid_run(job, tmp_path, script_itself, signal.SIGKILL)
    if script == "torchrun.sh":
        # torchrun hears of it by SIGTERM.
        _require_saved(tmp_path)


@pytest.mark.slow
def test_killed_node_ends_the_other(recipe: Path, tmp_path: Path) -> None:
    """kill -9 of one of two agents: the other one's ranks lose their peers, and say so."""
    options = ["--nnodes", 2, "--rdzv-endpoint", f"localhost:{free_port()}"]
    first = _training("torchrun.sh", recipe, tmp_path, *options, "--node-rank", 0, processes=1)
    second = _training("torchrun.sh", recipe, tmp_path, *options, "--node-rank", 1, processes=1)
    with first as node_0, second as node_1:
        _end_in_mid_run(node_1, tmp_path, Job.launcher, signal.SIGKILL)
        node_0.require_gone()
        code, _, errors = node_0.finish()
    assert code == 1 and "rank 0" in errors
