"""A rank that hangs or raises ends the job in time, is named, and everybody says where it was."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.cluster.verdict import Alive, judge
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_run import at_work, faulty, launch, metrics, train_on_bad_machine

TIMEOUT = 12
# For a busy machine: the launcher's own end, and a process that gets no processor.
SLACK = 20


def test_stopped_rank(recipe: Path, tmp_path: Path) -> None:
    overrides = [f"run_dir={tmp_path}", f"faults.hang_timeout_seconds={TIMEOUT}", "train.train_tokens=null"]
    # In quotes of YAML, which ends a plain value at a colon.
    overrides.append(f"monitor.notify_command='echo \"$KAIYUAN_EVENT: $KAIYUAN_TEXT\" >> {tmp_path}/told'")
    with at_work(2, recipe, *overrides) as job:
        while not (tmp_path / "metrics.jsonl").exists() or len(metrics(tmp_path)) < 2:
            assert job.poll() is None
            time.sleep(0.02)
        victim = job.ranks[1]
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        first, second = job.exit_codes(TIMEOUT + 60)
        errors = job.errors()
    assert time.monotonic() - stopped < TIMEOUT + SLACK
    assert errors.count("no rank has come further for 12 seconds") == 1
    assert f"rank 1 does not answer (host {os.uname().nodename}, process {victim})" in errors
    # Its own stacks come from the handler of SIGABRT, those of rank 0 from its watchdog.
    assert "[rank 0] thread MainThread:" in errors and "Fatal Python error: Aborted" in errors
    assert errors.count(" in fit") == 2
    assert first not in (0, 2) and second == -signal.SIGABRT
    # The watchdog's own message, and that of the notifier whose job has ended.
    deadline = time.monotonic() + 60
    told = ""
    while not ("\nhang: " in told and "\nend: " in told):
        told = (tmp_path / "told").read_text()
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    assert f": hangs: rank 1 does not answer (host {os.uname().nodename}, process {victim})" in told
    assert "without a stop: killed, or after an error" in told


@pytest.mark.slow
def test_rank_that_never_comes(recipe: Path, tmp_path: Path) -> None:
    fault = {"kind": "sleep", "from": 512, "to": 1024, "rank": 1}
    overrides = [f"run_dir={tmp_path}", f"faults.hang_timeout_seconds={TIMEOUT}"]
    done = train_on_bad_machine(2, [fault], recipe, *overrides)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "no rank has come further" in line)
    assert "rank 1 is at " in line and "faulty_train.py" in line and "rank 0" not in line
    assert "[rank 0] thread MainThread:" in done.stderr and "[rank 1] thread MainThread:" in done.stderr


def test_exception_ends_all_with_one_trace(recipe: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    fault = {"kind": "raise", "from": 512, "to": 1024, "rank": 1}
    logs = ["--log-dir", str(tmp_path / "logs"), "--tee", "3"]
    done = launch(2, faulty([fault], recipe, f"run_dir={tmp_path}/run"), *logs)
    assert done.returncode == 1
    (recorded,) = tmp_path.glob("logs/*/attempt_0/1/error.json")
    assert f"error: rank 1 ended with exit code 1, its trace is in {recorded}\n" in done.stderr
    assert "in fit\n" in json.loads(recorded.read_text())["message"]["extraInfo"]["py_callstack"]
    (written,) = tmp_path.glob("logs/*/attempt_0/1/stderr.log")
    assert "ZeroDivisionError: a fault of this test" in written.read_text()
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.count("ZeroDivisionError: a fault of this test") == 1
    # Without the watchdog and the launcher, rank 0 would wait ten minutes.
    assert time.monotonic() - started < 90


def test_time_outs_in_the_wrong_order_are_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"hang_timeout_seconds 300 is not below parallel\.timeout_minutes 1"):
        load_run(recipe, ["parallel.timeout_minutes=1", "faults.hang_timeout_seconds=300"])


def alive(beats: int, waiting: bool) -> Alive:
    return Alive(3, beats, waiting, "file.py:7 (read)", "node", 42, "1")


@pytest.mark.parametrize(
    ("said", "silent", "named"),
    [
        ({0: alive(5, True), 1: alive(5, True)}, [1], "rank 1 does not answer (host node, process 42)"),
        ({0: alive(5, True)}, [1], "rank 1 does not answer"),
        ({0: alive(5, True), 1: alive(5, False)}, [], "rank 1 is at file.py:7 (read) (host node, process 42)"),
        ({0: alive(5, False), 1: alive(4, False)}, [], "rank 1 is at file.py:7 (read) (host node, process 42)"),
        ({0: alive(5, False), 1: alive(5, False)}, [], "none stands out, as the stacks of all show"),
        ({0: alive(5, True), 1: alive(5, True)}, [], "none stands out, as the stacks of all show"),
        ({}, [1], "the store at node0:29500 does not answer, which rank 0 or its launcher holds"),
    ],
)
def test_who_is_to_blame(said: dict[int, Alive], silent: list[int], named: str) -> None:
    assert judge(said, silent, "node0:29500").message == named
