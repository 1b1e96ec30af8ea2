"""A crash after a bad step and before the next save changes nothing, also when the fault does not come again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import TOKENS_PER_STEP, batch, events, metrics, start_from, train
from tests.helpers.training.small_run import train_on_bad_machine as train_badly

CRASH = batch("raise", 16, rank=0)
ROLLBACK = ["faults.on_bad_step=rollback", "faults.rollback_batches=2"]


@pytest.fixture(params=[pytest.param("skip", marks=pytest.mark.slow), "skip fp16", "rollback"])
def answer(request: pytest.FixtureRequest) -> list[str]:
    """Of fp16 the loss scaler answers a bad step too."""
    scaler = ["train.precision=fp16", "optimizer.initial_loss_scale=1024", "optimizer.hysteresis=1"]
    return {"skip": [], "skip fp16": scaler, "rollback": ROLLBACK}[request.param]


def begin(run_dir: Path, recipe: Path, finished_run: Path, answer: list[str]) -> Path:
    """At step 10; FP16 begins at its own step 0."""
    return run_dir if "train.precision=fp16" in answer else start_from(finished_run, 10, run_dir)


def test_a_crash_before_the_next_save_changes_nothing(
    answer: list[str], recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """A fault of the machine, once, at batch 13; the reference has the fault and no crash."""
    fault = batch("nan_loss", 13, times=1)
    whole = begin(tmp_path / "whole", recipe, finished_run, answer)
    overrides = [*answer, "checkpoint.save_every_steps=20"]
    done = train_badly(2, [fault], recipe, f"run_dir={whole}", *overrides)
    assert done.returncode == 0, done.stderr

    crashed = begin(tmp_path / "crashed", recipe, finished_run, answer)
    done = train_badly(2, [fault, CRASH], recipe, f"run_dir={crashed}", *overrides)
    assert done.returncode == 1 and "a fault of this test" in done.stderr
    saved = "step_0" if "train.precision=fp16" in answer else "step_10"
    assert (crashed / "latest").read_text().strip() == saved
    done = train(2, recipe, f"run_dir={crashed}", *overrides)
    assert done.returncode == 0, done.stderr
    assert "left_out: step " in done.stderr
    last = max(metrics(whole))
    # Of the bad step itself the loss is another one: the fault has not come again.
    good = [step for step, row in metrics(whole).items() if row["loss"] is not None]
    assert len(good) >= 7
    assert [metrics(crashed)[step]["loss"] for step in good] == [metrics(whole)[step]["loss"] for step in good]
    assert_same_state(crashed / "checkpoints" / f"step_{last}", whole / "checkpoints" / f"step_{last}")
    positions = [metrics(crashed)[step]["tokens"] for step in range(11, last + 1)]
    assert positions == [metrics(whole)[step]["tokens"] for step in range(11, last + 1)]


def test_the_list_is_on_disk_before_the_run_answers(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """A crash while the older state is restored: the range is known already."""
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    faults = [batch("nan_loss", 13, times=1), {"kind": "restore", "from": 0, "to": 0}]
    done = train_badly(2, faults, recipe, f"run_dir={run_dir}", *ROLLBACK)
    assert done.returncode == 1 and "a fault of this test" in done.stderr
    assert events(run_dir, "rollback") == []
    (entry,) = json.loads((run_dir / "left_out.json").read_text())
    assert (entry["action"], entry["checkpoint"], entry["step"]) == ("rollback", 10, 13)
    assert entry["tokens"] == [11 * TOKENS_PER_STEP, 13 * TOKENS_PER_STEP]


def test_rollbacks_before_a_crash_count(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    overrides = [*ROLLBACK, "faults.rollback_batches=1", "faults.max_rollbacks=1"]
    done = train_badly(2, [batch("nan_loss", 12), batch("raise", 14, rank=0)], recipe, f"run_dir={run_dir}", *overrides)
    assert done.returncode == 1 and len(events(run_dir, "rollback")) == 1
    done = train_badly(2, [batch("nan_loss", 15)], recipe, f"run_dir={run_dir}", *overrides)
    assert done.returncode == 2 and "went back to step 10 1 times" in done.stderr


def test_a_change_of_the_learning_rate_judges_again(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    done = train_badly(1, [batch("nan_loss", 13), CRASH], recipe, f"run_dir={run_dir}")
    assert done.returncode == 1 and len(json.loads((run_dir / "left_out.json").read_text())) == 1
    done = train(1, recipe, f"run_dir={run_dir}", "data.phases.0.peak_lr=0.001")
    assert done.returncode == 0, done.stderr
    assert "left_out" not in done.stderr and metrics(run_dir)[20]["skipped_steps"] == 0


def test_a_new_run_in_the_folder_leaves_nothing_out(recipe: Path, tmp_path: Path) -> None:
    entry = {"action": "rollback", "step": 2, "tokens": [0, 512], "checkpoint": 0, "reason": "loss is nan"}
    (tmp_path / "left_out.json").write_text(json.dumps([entry]))
    done = train(1, recipe, f"run_dir={tmp_path}", f"train.train_tokens={TOKENS_PER_STEP}")
    assert done.returncode == 0 and metrics(tmp_path)[1]["tokens"] == TOKENS_PER_STEP


@pytest.mark.parametrize("content", ['[{"action": "skip", "tokens": [0]}]', "not json"])
def test_a_damaged_list_is_refused_by_name(content: str, recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    (run_dir / "left_out.json").write_text(content)
    done = train(1, recipe, f"run_dir={run_dir}")
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "left_out.json: is not a list" in done.stderr
