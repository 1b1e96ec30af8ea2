"""Preprocessing under a real Slurm: an array, and the tasks of one `srun`, give what one process gives.

    bash tests/run.sh -m root tests/data_tools/preprocessing/test_slurm_ranks.py

Slow, since its daemons answer late on a busy machine.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with slurm_cluster() as found:
        yield found


@pytest.fixture
def line(harvested: Path, tokenizer_path: Path) -> list[str]:
    line = [sys.executable, "-m", "data_tools", "preprocess", "--input", f"{harvested}/*.jsonl"]
    line += ["--score-keys", "score", "--task-bytes", "20000", "--workers", "1"]
    return [*line, "--tokenizer-model", str(tokenizer_path)]


def run(line: list[str], environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    assert len(list(folder.iterdir())) == 4
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("how", ["sbatch --array", "srun"])
def test_ranks_of_slurm_give_what_one_process_gives(
    how: str, environ: dict[str, str], line: list[str], tmp_path: Path
) -> None:
    ranks, alone = [*line, "--output-prefix", str(tmp_path / "ranks/c")], tmp_path / "alone"
    if how == "srun":
        said = run(["srun", "-n", "4", *ranks], environ)
    else:
        script = f"#!/bin/sh\nexec {shlex.join(ranks)}\n"
        (tmp_path / "job.sh").write_text(script)
        log = tmp_path / "said-%a.txt"
        number = run(["sbatch", "--parsable", "--array=0-3", f"--output={log}", str(tmp_path / "job.sh")], environ)
        wait_for_job(number.strip(), environ)
        said = "".join(path.read_text() for path in sorted(tmp_path.glob("said-*.txt")))
    assert str(tmp_path / "ranks/c_text_document") in said
    run([*line, "--output-prefix", str(alone / "c")])
    assert contents(tmp_path / "ranks") == contents(alone)
