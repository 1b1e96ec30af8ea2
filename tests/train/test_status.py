"""`kaiyuan status` of a real run, in each state that a run can be in."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint import lock
from megatron_kaiyuan.cluster.bad_nodes import write_bad_nodes
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.report.status import read_status
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_run import STEPS, TOKENS_PER_STEP, at_work, metrics, succeed, took_steps, wait_for


def holds(run_dir: Path, process: int, doing: str) -> bool:
    """Whether the lock's note is that of a process at this work."""
    return {"pid": process, "doing": doing}.items() <= (lock.holder(run_dir) or {}).items()


def test_a_run_from_its_start_to_its_end(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with at_work(1, recipe, f"run_dir={run_dir}", "train.train_tokens=null") as job:
        wait_for(lambda: took_steps(run_dir, 3)() and holds(run_dir, job.ranks[0], "step"), job)
        os.kill(job.ranks[0], signal.SIGSTOP)
        found = read_status(run_dir)
        assert (found.state, found.exit_code, found.starts) == ("training", 0, 1)
        assert (found.step, found.tokens) == (max(metrics(run_dir)), max(metrics(run_dir)) * TOKENS_PER_STEP)
        assert found.holder is not None and found.holder["pid"] == job.ranks[0]
        assert found.total_steps is not None and found.total_steps > STEPS and found.seconds_left is not None
        assert found.holder["doing"] == "step" and found.holder["step"] >= 1
        later = read_status(run_dir, now=time.time() + 3600)
        assert (later.state, later.exit_code) == ("hung", 1) and later.row_age is not None and later.row_age >= 3600
        assert later.quiet_seconds is not None and later.quiet_seconds >= 3600
        assert re.search(r"held by process \d+ on .*: \w+.* for 1:00:\d\d", "\n".join(later.lines()))
        os.kill(job.ranks[0], signal.SIGCONT)
        job.send_signal(signal.SIGKILL)
        job.wait(60)
    died = read_status(run_dir)
    assert (died.state, died.exit_code, died.holder, died.checkpoint) == ("died", 1, None, "step_0")
    assert died.reason is None
    write_bad_nodes(run_dir, ["node7"], "rank 0 does not answer")
    assert read_status(run_dir).lines()[-1] == "  bad nodes node7: rank 0 does not answer"

    with at_work(1, recipe, f"run_dir={run_dir}", "train.train_tokens=null") as job:
        # From its second step on it minds signals, and the lock has its note, no longer that of the job before.
        wait_for(lambda: holds(run_dir, job.ranks[0], "step"), job)
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


NOTE = {"host": "node7", "boot": "another", "pid": 7, "started": 900.0, "time": 1000.0, "beats": 9, "step": 3}


@pytest.mark.parametrize(
    ("doing", "quiet", "seconds_per_step", "state"),
    [
        ("step", 20.0, 1.0, "training"),
        ("step", 310.0, 1.0, "hung"),
        # A long step is not a hang, and neither is what may take longer than a step.
        ("step", 310.0, 100.0, "training"),
        ("saving step 3", 310.0, 1.0, "training"),
        ("saving step 3", 610.0, 1.0, "hung"),
        ("first step", 610.0, 1.0, "hung"),
    ],
)
def test_a_job_whose_process_lives_and_does_not_come_further(
    doing: str, quiet: float, seconds_per_step: float, state: str, tmp_path: Path
) -> None:
    """Its beats continue, as seen by the watch."""
    rows = [
        {"event": "start", "step": 0, "tokens": 0, "total_steps": 9, "time": 901.0},
        *({"step": step, "seconds_per_step": seconds_per_step, "time": 950.0 + step} for step in (1, 2, 3)),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    note = NOTE | {"doing": doing, "quiet_seconds": quiet, "limit_seconds": 600.0 if doing != "step" else 2000.0}
    (tmp_path / "lock").write_text(json.dumps(note))
    if os.fork() == 0:
        time.sleep(0.3)
        (tmp_path / "lock").write_text(json.dumps(note | {"beats": 10}))
        os._exit(0)
    found = read_status(tmp_path, now=1000.0)
    os.wait()
    assert (found.state, found.quiet_seconds) == (state, quiet)


def test_looking_does_not_keep_a_job_out(tmp_path: Path) -> None:
    held = lock.RunLock(tmp_path)
    assert lock.holder(tmp_path) is None, "the kernel does not name a lock of one's own, and the note is this machine's"
    held.release()
    assert lock.holder(tmp_path) is None
