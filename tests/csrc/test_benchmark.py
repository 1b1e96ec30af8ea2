"""The benchmark runs, and NumPy finds the same files at a size that Python's reference cannot reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_benchmark_compares_equal_orders():
    command = [sys.executable, "-m", "benchmarks.curriculum", "--documents", "1e6", "--threads", "3", "--rounds", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("times numpy") == 3
