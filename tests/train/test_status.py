"""`kaiyuan status` of a real run, in each state that a run can be in."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from small_run import STEPS, TOKENS_PER_STEP, at_work, metrics, succeed
from test_saving import took_steps, wait_for

from megatron_kaiyuan.checkpoint import lock
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.report.status import read_status
from tests.rank_server import run


def test_a_run_from_its_start_to_its_end(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with at_work(1, recipe, f"run_dir={run_dir}", "train.train_tokens=null") as job:
        wait_for(took_steps(run_dir, 3), job)
        os.kill(job.ranks[0], signal.SIGSTOP)
        found = read_status(run_dir)
        assert (found.state, found.exit_code, found.starts) == ("training", 0, 1)
        assert (found.step, found.tokens) == (max(metrics(run_dir)), max(metrics(run_dir)) * TOKENS_PER_STEP)
        assert found.holder is not None and found.holder["pid"] == job.ranks[0]
        assert found.total_steps is not None and found.total_steps > STEPS and found.seconds_left is not None
        later = read_status(run_dir, now=time.time() + 3600)
        assert (later.state, later.exit_code) == ("stalled", 1) and later.row_age is not None and later.row_age >= 3600
        os.kill(job.ranks[0], signal.SIGCONT)
        job.send_signal(signal.SIGKILL)
        job.wait(60)
    died = read_status(run_dir)
    assert (died.state, died.exit_code, died.holder, died.checkpoint) == ("died", 1, None, "step_0")

    with at_work(1, recipe, f"run_dir={run_dir}", "train.train_tokens=null") as job:
        wait_for(lambda: read_status(run_dir).starts == 2 and took_steps(run_dir, 3)(), job)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143
    stopped = read_status(run_dir)
    assert (stopped.state, stopped.exit_code) == ("stopped", 1)
    assert stopped.checkpoint == f"step_{stopped.step}" and stopped.device_hours > died.device_hours > 0

    succeed(1, recipe, f"run_dir={run_dir}", f"train.train_tokens={(stopped.step + 2) * TOKENS_PER_STEP}")
    finished = read_status(run_dir)
    assert (finished.state, finished.exit_code, finished.starts) == ("finished", 0, 3)
    assert finished.step == finished.total_steps == stopped.step + 2
    mean = sum(row["loss"] for row in list(metrics(run_dir).values())[-20:]) / min(20, len(metrics(run_dir)))
    assert finished.loss == pytest.approx(mean)


def test_the_command(finished_run: Path) -> None:
    done = run(1, ["-m", "megatron_kaiyuan.cli", "status", finished_run], imported="torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{finished_run}: finished, step 20 of 20 (100.0%), 10,240 tokens, second\n")
    shown = json.loads(
        run(1, ["-m", "megatron_kaiyuan.cli", "status", finished_run, "--json"], imported="torch").stdout
    )
    # Two ranks.
    rows = metrics(finished_run)
    hours = 2 * (rows[20]["time"] - rows[1]["time"]) / 3600
    assert shown["device_hours"] >= hours and shown["checkpoint"] == "step_20"


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        read_status(tmp_path)


def test_the_note_of_another_machine_is_watched(tmp_path: Path) -> None:
    """As on a mount without lock service: the kernel here knows of no holder."""
    note = {"host": "node7", "boot": "another", "pid": 7, "started": 1.0, "beats": 1}
    (tmp_path / "lock").write_text(json.dumps(note))
    assert lock.holder(tmp_path, watch_seconds=0.2) is None
    if os.fork() == 0:
        time.sleep(0.1)
        (tmp_path / "lock").write_text(json.dumps(note | {"beats": 2}))
        os._exit(0)
    assert lock.holder(tmp_path, watch_seconds=10) == note | {"beats": 2}
    os.wait()


def test_looking_does_not_keep_a_job_out(tmp_path: Path) -> None:
    held = lock.RunLock(tmp_path)
    assert lock.holder(tmp_path) is None, "the kernel does not name a lock of one's own, and the note is this machine's"
    held.release()
    assert lock.holder(tmp_path) is None
