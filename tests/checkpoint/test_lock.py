"""Real processes that hold the lock, end, are killed, or live on another machine as far as the note tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint.lock import LOCK, RunLock
from megatron_kaiyuan.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from megatron_kaiyuan.checkpoint.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(run_dir: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_job_is_refused_until_the_first_one_dies(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        for _ in range(2):
            with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on .*, since \d{{4}}-"):
                RunLock(tmp_path)
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match="is in use"):
            RunLock(tmp_path)
        holder.kill()
    started = time.monotonic()
    RunLock(tmp_path).release()
    # A dead owner on this machine is known to be dead: nothing is waited for.
    assert time.monotonic() - started < 2
    assert (tmp_path / LOCK).read_bytes() == b""


def test_a_job_can_start_again_after_another(tmp_path: Path) -> None:
    for _ in range(2):
        lock = RunLock(tmp_path / "new")
        note = json.loads((tmp_path / "new" / LOCK).read_text())
        assert note["pid"] == os.getpid()
        lock.release()


def note_of_another_machine(beats: int) -> str:
    return json.dumps({"host": "elsewhere", "boot": "another", "pid": 7, "started": 0.0, "beats": beats})


def test_a_dead_job_of_another_machine_is_watched_and_then_replaced(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(note_of_another_machine(3))
    started = time.monotonic()
    RunLock(tmp_path, watch_seconds=0.5).release()
    assert time.monotonic() - started >= 0.5


def test_a_living_job_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    """On a mount without lock service both get the kernel's lock: only the note tells."""
    path, stop = tmp_path / LOCK, threading.Event()
    path.write_text(note_of_another_machine(0))
    # In a process of its own, as closing a file gives up the locks that this process has on it.
    beat = (
        "import sys, time, pathlib\nfor n in range(1, 100):\n time.sleep(0.2)\n pathlib.Path(sys.argv[1]).write_text("
    )
    beat += "sys.argv[2].replace('\"beats\": 0', f'\"beats\": {n}'))"
    with subprocess.Popen([sys.executable, "-c", beat, str(path), note_of_another_machine(0)]) as other:
        with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
            RunLock(tmp_path, watch_seconds=10)
        other.kill()
    stop.set()


def test_the_note_beats(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, beat_seconds=0.05)
    time.sleep(0.5)
    # Not read here: see above.
    note = subprocess.run(["cat", str(tmp_path / LOCK)], capture_output=True, check=True).stdout
    assert json.loads(note)["beats"] > 3
    lock.release()


def test_the_note_says_that_training_advances(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, beat_seconds=0.05)

    def note() -> dict:
        return json.loads(subprocess.run(["cat", str(tmp_path / LOCK)], capture_output=True, check=True).stdout)

    assert note()["doing"] == "starting"
    lock.advance("step", 7, 300.0)
    time.sleep(0.7)
    first = note()
    assert (first["doing"], first["step"], first["limit_seconds"]) == ("step", 7, 300.0)
    assert first["quiet_seconds"] >= 0.5, "the thread lives and has beaten meanwhile: that is not a step"
    lock.advance("saving step 8", 8, 300.0)
    time.sleep(0.2)
    second = note()
    assert second["beats"] > first["beats"] and second["doing"] == "saving step 8"
    assert second["quiet_seconds"] < first["quiet_seconds"] + 0.2
    lock.release()


def test_a_job_that_hangs_is_refused_as_one(tmp_path: Path) -> None:
    """It keeps the folder: it may write again."""
    hanging = HOLD.replace(
        'print("held"', 'lock.advance("step", 7, 0.5); time.sleep(1); lock._write_note(); print("held"'
    )
    with subprocess.Popen([sys.executable, "-c", hanging, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=rf"in use by process {holder.pid} on .*, which hangs \(step for 0:00:0\d\)"
        ):
            RunLock(tmp_path)
        holder.kill()


def test_a_lock_that_was_removed_is_noticed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.require()
    (tmp_path / LOCK).unlink()
    with pytest.raises(UserError, match="was removed while this job ran"):
        lock.require()
    second = RunLock(tmp_path)
    second.require()
    with pytest.raises(UserError, match="was removed while this job ran"):
        lock.require()
    second.release()
    lock.release()


def test_a_copy_by_hard_links_has_a_lock_of_its_own(tmp_path: Path) -> None:
    """`cp -al run copy`, of a run that ended, that runs, and that was killed."""
    for name in ("ended", "running", "killed"):
        run_dir = tmp_path / name
        run_dir.mkdir()
        if name == "ended":
            RunLock(run_dir).release()
            holder = None
        else:
            holder = hold(run_dir)
        if holder is not None and name == "killed":
            holder.kill()
            holder.wait()
        note = (run_dir / LOCK).read_bytes()
        subprocess.run(["cp", "-al", run_dir, tmp_path / f"copy of {name}"], check=True)
        copy = RunLock(tmp_path / f"copy of {name}")
        assert (tmp_path / f"copy of {name}" / LOCK).stat().st_ino != (run_dir / LOCK).stat().st_ino
        if holder is not None and name == "running":
            with pytest.raises(UserError, match=f"is in use by process {holder.pid}"):
                RunLock(run_dir)
            holder.kill()
            holder.wait()
        else:
            assert (run_dir / LOCK).read_bytes() == note
        copy.release()
