"""What a user or another job does to a run's folder while it trains: nothing of it ends a run, or is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here

if TYPE_CHECKING:
    from megatron_kaiyuan.train.session import Session

FOUR = f"train.train_tokens={4 * TOKENS_PER_STEP}"


def steps(run_dir: Path) -> list[int]:
    from megatron_kaiyuan.checkpoint import layout

    return layout.steps(run_dir)


def test_files_that_cannot_be_taken_away_are_named_once(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Folders of their names, which no one can unlink, not even root."""
    fit_here(recipe, f"run_dir={tmp_path}", f"train.train_tokens={TOKENS_PER_STEP}")
    for name in ("save_now", "preempted.json"):
        (tmp_path / name).mkdir()
    capfd.readouterr()
    fit_here(recipe, f"run_dir={tmp_path}", FOUR)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "could not be removed" in line]
    assert len(warnings) == 2 and str(tmp_path / "preempted.json") in warnings[0] and "save_now" in warnings[1]
    # Answered once, and the last step.
    assert steps(tmp_path) == [0, 1, 2, 4]


def test_a_job_that_has_lost_its_lock_does_not_move_latest(recipe: Path, tmp_path: Path) -> None:
    """The lock goes while a save is under way: the other job's `latest` and old checkpoints are not touched."""
    from megatron_kaiyuan.checkpoint.lock import LOCK, RunLock
    from megatron_kaiyuan.train.hooks.hook import Hook

    class OtherJob(Hook):
        def after_step(self, session: Session, result: object) -> None:
            if session.state.progress.step == 3:
                (tmp_path / LOCK).unlink()
                other.append(RunLock(tmp_path))
                (tmp_path / "latest").write_text("step_77\n")

    other: list[RunLock] = []
    often = ["checkpoint.save_every_steps=3", "checkpoint.asynchronous=true"]
    with pytest.raises(UserError, match="was removed while this job ran"):
        # After the hook that saves: step 3 is being written when the lock goes.
        fit_here(recipe, f"run_dir={tmp_path}", FOUR, *often, prepare=lambda session: session.hooks.append(OtherJob()))
    assert (tmp_path / "latest").read_text() == "step_77\n"
    other[0].release()
