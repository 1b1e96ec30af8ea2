"""Wait until a run that is at work has come to a point."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.processes.rank_server import Started
from tests.helpers.training.small_run import metrics

NEVER = "checkpoint.save_every_steps=100000"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | Started) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def took_steps(run_dir: Path, number: int) -> Callable[[], bool]:
    return lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= number
