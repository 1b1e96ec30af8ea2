"""The benchmark of signatures runs, and finds what it must find on few documents too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_prints_speed_and_quality() -> None:
    command = [sys.executable, "-m", "benchmarks.dedup_signatures", "--documents", "400", "--peer-documents", "2"]
    done = subprocess.run([*command, "--rounds", "1"], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {language for language, _ in re.findall(r"^(English|Chinese): (\d+)", done.stdout, re.MULTILINE)} >= {
        "English"
    }
    assert all(float(rate.replace(",", "")) > 0 for rate in re.findall(r"([\d,]+) docs/s", done.stdout))
    (checked,) = re.findall(r"^  21 x 6 .* ([\d.]+), ([\d.]+)$", done.stdout, re.MULTILINE)
    assert float(checked[0]) > 0.95 and float(checked[1]) == 1
    assert re.findall(r"(\d+) joined, (\d+) in truth", done.stdout) == [("0", "0"), ("0", "0")]
