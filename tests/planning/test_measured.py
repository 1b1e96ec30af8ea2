"""The plan against real training."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peak_memory_is_within_ten_percent(tmp_path: Path) -> None:
    """`bash tests/run.sh -m slow tests/planning`: data, tensor and pipeline parallel, two real ranks each."""
    cases = ["dp2", "dp2, bf16", "tp2", "pp2", "pp2, micro-batch 2"]
    options = [argument for case in cases for argument in ("--case", case)]
    command = [sys.executable, "-m", "benchmarks.plan", "--folder", str(tmp_path), *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratios = [float(row[1]) for row in re.finditer(r"^(?:dp2|tp2|pp2).* (\d\.\d{3})   weights", done.stdout, re.M)]
    assert len(ratios) == 2 * len(cases)
    assert all(0.9 < ratio < 1.1 for ratio in ratios), done.stdout
