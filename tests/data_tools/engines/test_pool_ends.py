"""Processes of a pool end with the one that started them, whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# Each worker sleeps in C with the interpreter's lock held, so that no thread of its can run.
PARENT = """
import ctypes, os, sys
from data_tools.engines.pool import Pool

class Worker:
    def hold(self):
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()}\\n")
        ctypes.PyDLL(None).sleep(60)

if __name__ == "__main__":
    with Pool(Worker(), 2) as pool:
        list(pool.run("hold", [(), ()]))
"""


def is_running(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody asked for its exit status does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_worker_outlives_its_killed_parent_even_inside_a_library(tmp_path: Path) -> None:
    script, started = tmp_path / "parent.py", tmp_path / "started"
    script.write_text(PARENT)
    started.touch()
    parent = subprocess.Popen([sys.executable, str(script), str(started)], start_new_session=True)
    try:
        end = time.monotonic() + 60
        while len(started.read_text().split()) < 2 and time.monotonic() < end and parent.poll() is None:
            time.sleep(0.05)
        workers = [int(word) for word in started.read_text().split()]
        assert len(workers) == 2 and all(map(is_running, workers))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 20
        while any(map(is_running, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(is_running, workers))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
