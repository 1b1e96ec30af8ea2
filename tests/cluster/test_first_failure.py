"""A rank's command under the program that notes its exit code: code, signals, output, and its end with that program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_kaiyuan import exit_codes
from megatron_kaiyuan.cluster.first_failure import FIRST_FAILURE

SAVES = """
import os, signal, sys, time
signal.signal(int(sys.argv[1]), lambda number, frame: os._exit(5))
print("here", os.getpid(), flush=True)
time.sleep(60)
"""


def _started(run_dir: Path, *command: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "megatron_kaiyuan.cluster.first_failure", str(run_dir), *command]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 1, 7, exit_codes.KILLED, 134, 143])
def test_code(code: int, tmp_path: Path) -> None:
    ends = f"kill -{code - 128} $$" if code > 128 else f"exit {code}"
    with _started(tmp_path / "run", "sh", "-c", f"read line; echo $line; ulimit -c 0; {ends}") as process:
        output, _ = process.communicate("a line\n")
    assert (process.returncode, output) == (code, "a line\n")
    left = tmp_path / "run" / FIRST_FAILURE
    assert (json.loads(left.read_text())["code"] == code) if code else not left.exists()


@pytest.mark.parametrize("number", exit_codes.STOP_SIGNALS)
def test_signals_reach_the_rank(number: int, tmp_path: Path) -> None:
    with _started(tmp_path, sys.executable, "-c", SAVES, str(number)) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("here")
        process.send_signal(number)
        assert process.wait(60) == 5


def test_the_first_failure_stays(tmp_path: Path) -> None:
    for code in (3, 1):
        with _started(tmp_path, "sh", "-c", f"exit {code}") as process:
            assert process.wait(60) == code
    assert json.loads((tmp_path / FIRST_FAILURE).read_text())["code"] == 3


def test_the_rank_ends_with_it(tmp_path: Path) -> None:
    with _started(tmp_path, sys.executable, "-c", SAVES, str(int(signal.SIGUSR1))) as process:
        assert process.stdout is not None
        rank = int(process.stdout.readline().split()[1])
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while psutil.pid_exists(rank) and psutil.Process(rank).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
