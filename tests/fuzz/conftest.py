"""A few damaged files of every target, read once for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

_ROUNDS = 15


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every target, from a process of its own: a fork of a process with threads, as this one, may wait for ever."""
    path = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    command = [sys.executable, "-m", "tests.fuzz", "--rounds", str(_ROUNDS), "--json", str(path)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert path.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(path.read_text())
