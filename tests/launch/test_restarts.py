"""launch/torchrun.sh --restarts: goes on without a person, and stops where going on is of no use."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.processes.launched import launched
from tests.helpers.training.small_run import TOKENS_PER_STEP, losses, metrics, succeed

# Four starts, one after the other.
pytestmark = pytest.mark.timeout(900)


def restarting(recipe: Path, run_dir: Path, *options: object, overrides: Sequence[str] = ()):
    options = ("--restart-delay", 0, "--nproc-per-node", 1, *options)
    return launched("torchrun.sh", *options, recipe, f"run_dir={run_dir}", *overrides)


def trained(run_dir: Path, steps: int) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= steps


def test_a_killed_rank_costs_nothing_but_time_and_it_stops_when_asked_to(recipe: Path, tmp_path: Path) -> None:
    """Two ranks killed, then a SIGTERM to the script; what is left of the run is finished without a launcher."""
    # So many that there is time for a signal before the end.
    length = f"train.train_tokens={60 * TOKENS_PER_STEP}"
    succeed(1, recipe, f"run_dir={tmp_path / 'calm'}", length)
    run_dir = tmp_path / "run"
    with restarting(recipe, run_dir, "--restarts", 3, overrides=[length]) as job:
        for steps in (4, 8):
            job.wait_for(lambda steps=steps: trained(run_dir, steps) and job.ranks())
            os.kill(job.ranks()[0], signal.SIGKILL)
            job.wait_for(lambda: not job.ranks())
        done = len(metrics(run_dir))
        job.wait_for(lambda: trained(run_dir, done + 1))
        job.script.send_signal(signal.SIGTERM)
        code, output, errors = job.finish()
    assert code == 143, errors
    # The second one was asked for after a newer checkpoint: the count began again.
    assert output.count("exit code 137; restart 1 of 3 without a newer checkpoint") == 2, output
    assert "restart 2 of 3" not in output
    assert (run_dir / "latest").read_text().strip() == f"step_{max(metrics(run_dir))}"
    assert len(losses(run_dir)) < 60
    succeed(1, recipe, f"run_dir={run_dir}", length)
    assert losses(run_dir) == losses(tmp_path / "calm") and len(losses(run_dir)) == 60


def test_it_stops_without_progress(recipe: Path, tmp_path: Path) -> None:
    with restarting(recipe, tmp_path / "run", "--restarts", 1) as job:
        killed: set[int] = set()
        while job.script.poll() is None:
            for rank in set(job.ranks()) - killed:
                os.kill(rank, signal.SIGKILL)
                killed.add(rank)
            time.sleep(0.1)
        code, output, errors = job.finish()
    assert code == 137
    assert len(killed) == 2 and "restart 1 of 1 without a newer checkpoint, from the beginning" in output
    assert "restart 1 won no newer checkpoint and ended with exit code 137" in errors


@pytest.mark.slow
def test_it_stops_at_a_mistake(recipe: Path, tmp_path: Path) -> None:
    """One that only training itself can find: the folder holds a checkpoint, but none that is whole."""
    step = tmp_path / "run" / "checkpoints" / "step_0"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    with restarting(recipe, tmp_path / "run", "--restarts", 5) as job:
        code, output, errors = job.finish()
    assert code == 2 and "no checkpoint is whole" in errors
    assert "; restart " not in output
