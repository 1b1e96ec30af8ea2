"""When real runs are saved, and how they end before their time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import (
    NEVER,
    TOKENS_PER_STEP,
    at_work,
    losses,
    metrics,
    start_from,
    succeed,
    took_steps,
    train,
    wait_for,
)

TENSOR = "parallel.tensor_model_parallel_size=2"
SCALER = ["optimizer.initial_loss_scale=4194304", "optimizer.loss_scale_window=3", "optimizer.hysteresis=1"]


def steps(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def events(run_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == "checkpoint"]


def test_what_is_written_in_the_background_is_what_waiting_writes(
    recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """Steps 10 and 20 of `finished_run` were saved while it went on, or before it ended."""
    run_dir = start_from(finished_run, 0, tmp_path)
    tokens = f"train.train_tokens={10 * TOKENS_PER_STEP}"
    # The second phase's learning rate would end elsewhere; the first ten steps do not know.
    succeed(2, recipe, f"run_dir={run_dir}", "checkpoint.asynchronous=false", tokens)
    assert_same_state(run_dir / "checkpoints" / "step_10", finished_run / "checkpoints" / "step_10")
    found = events(finished_run)
    assert [event["step"] for event in found] == [0, 10, 20]
    assert all(0 < event["stall_seconds"] <= event["seconds"] and event["bytes"] > 1e6 for event in found)
    assert found[1]["stall_seconds"] < found[1]["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [[TENSOR], ["train.precision=fp16", *SCALER], [TENSOR, "train.precision=fp16", *SCALER]], ids=str
)
def test_resume_from_a_background_save_is_bitwise(settings: list[str], recipe: Path, tmp_path: Path) -> None:
    """Saves start at every third step, so that one is nearly always under way."""
    often = ["checkpoint.save_every_steps=3", *settings]
    succeed(2, recipe, f"run_dir={tmp_path / 'whole'}", *often)
    run_dir = start_from(tmp_path / "whole", 6, tmp_path / "resumed")
    succeed(2, recipe, f"run_dir={run_dir}", *often)
    assert losses(run_dir) == losses(tmp_path / "whole")[6:]
    assert_same_state(run_dir / "checkpoints" / "step_20", tmp_path / "whole" / "checkpoints" / "step_20")


def test_sigusr1_saves_marks_and_goes_on_and_two_jobs_are_kept_apart(
    recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with at_work(2, recipe, f"run_dir={run_dir}", NEVER) as job:
        wait_for(took_steps(run_dir, 1), job)
        # Held still, so that the same command again meets it alive; it is refused and harms nothing.
        job.send_signal(signal.SIGSTOP)
        second = train(1, recipe, f"run_dir={run_dir}")
        job.send_signal(signal.SIGUSR1)
        job.send_signal(signal.SIGCONT)
        assert job.wait(120) == 128 + signal.SIGUSR1
    assert second.returncode == 2 and f"is in use by process {job.ranks[0]} on " in second.stderr
    stopped_at, marker = max(metrics(run_dir)), run_dir / "preempted.json"
    assert stopped_at < 20 and json.loads(marker.read_text())["step"] == stopped_at
    assert (run_dir / "latest").read_text() == f"step_{stopped_at}\n"
    succeed(2, recipe, f"run_dir={run_dir}")
    assert not marker.exists()
    assert losses(run_dir) == losses(finished_run)


def test_save_now_and_the_clock(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    start_from(finished_run, 10, tmp_path)
    (tmp_path / "save_now").touch()
    succeed(2, recipe, f"run_dir={tmp_path}", NEVER, f"train.train_tokens={13 * TOKENS_PER_STEP}")
    assert steps(tmp_path) == {"step_10", "step_11", "step_13"}
    assert not (tmp_path / "save_now").exists()
    clock = "checkpoint.save_every_minutes=0.0000001"
    succeed(2, recipe, f"run_dir={tmp_path}", NEVER, clock, f"train.train_tokens={16 * TOKENS_PER_STEP}")
    assert steps(tmp_path) >= {"step_14", "step_15", "step_16"}


def test_a_rank_that_cannot_end_is_ended_at_the_deadline(recipe: Path, tmp_path: Path) -> None:
    """One rank is stopped, so the other waits in a collective, where no Python handler runs."""
    run_dir = tmp_path / "run"
    overrides = [f"run_dir={run_dir}", NEVER, "checkpoint.preempt_deadline_seconds=2"]
    with at_work(2, recipe, *overrides) as job:
        wait_for(took_steps(run_dir, 2), job)
        os.kill(job.ranks[1], signal.SIGSTOP)
        time.sleep(0.5)
        asked = time.monotonic()
        os.kill(job.ranks[0], signal.SIGTERM)
        wait_for(lambda: has_ended(job.ranks[0]), job)
        assert 2 <= time.monotonic() - asked < 30
        # A launcher would wait 30 seconds for it.
        os.kill(job.ranks[1], signal.SIGKILL)
        job.wait(60)
        assert "error: rank 0: not ended 2 s after SIGTERM" in job.errors()


def has_ended(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or ") Z" in stat.read_text()
