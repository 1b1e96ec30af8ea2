"""The quick part of the fault matrix; the whole is `python -m tests.faults --all`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


# A shared machine has taken three and a half minutes for what a quiet one does in one.
@pytest.mark.timeout(600)
def test_no_fault_is_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "faults: 0 lost" in done.stdout
