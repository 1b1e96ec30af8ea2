"""The benchmark of the index runs, and finds the same bytes on both sides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_compares_equal_files(tmp_path: Path):
    options = ["--documents", "120000", "--parts", "2", "--threads", "2", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.index", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("times megatron-core") == 4
    assert done.stdout.splitlines()[-1] == "all pairs have the same bytes"
    assert list(tmp_path.iterdir()) == []
