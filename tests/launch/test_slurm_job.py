"""launch/slurm.sbatch under a real Slurm: torchrun's losses, a save and a new turn in time, an array.

apt-get install slurm-wlm munge
bash tests/run.sh -m root tests/launch/test_slurm_job.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT
from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job
from tests.helpers.training.small_run import losses, metrics

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with slurm_cluster() as found:
        interpreter = Path(sys.executable).parent
        path = f"{interpreter}{os.pathsep}{found['PATH']}"
        yield {**found, "PATH": path, "VIRTUAL_ENV": str(interpreter.parent), "PYTHONPATH": str(ROOT)}


def _submit(environ: dict[str, str], log: Path, *words: object, options: tuple[str, ...] = ()) -> str:
    sbatch = ["sbatch", "--parsable", "--ntasks-per-node=2", f"--output={log}", *options]
    done = subprocess.run(
        [*sbatch, "launch/slurm.sbatch", *map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _wait_until(happened, log: Path) -> None:
    deadline = time.monotonic() + 400
    while not happened():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_tasks_are_ranks(recipe: Path, losses_under_torchrun: list[float], environ, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wait_for_job(_submit(environ, log, recipe, f"run_dir={tmp_path}/run"), environ)
    assert losses(tmp_path / "run") == losses_under_torchrun
    said = log.read_text()
    assert "launch: OMP_NUM_THREADS=" in said and "'srun'" in said and "train: step 20/20" in said


def test_job_saves_and_queues_itself_again(recipe: Path, environ, tmp_path: Path) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    steps = 200
    number = _submit(environ, log, recipe, f"run_dir={run_dir}", f"train.train_tokens={steps * 512}")
    _wait_until(lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) > 10, log)
    # As Slurm does it by --signal=B:USR1@600, but not at a time of its own.
    subprocess.run(["scancel", "--batch", "--signal=USR1", number], env=environ, check=True)
    _wait_until(lambda: f"job {number} is queued again" in log.read_text(), log)
    wait_for_job(number, environ, seconds=400)
    said = log.read_text()
    assert said.count("launch: OMP_NUM_THREADS=") == 2 and said.count(f"train: step {steps}/{steps}") == 1
    events = [line for line in (run_dir / "metrics.jsonl").read_text().splitlines() if '"resume"' in line]
    assert len(events) == 1 and len(losses(run_dir)) == steps


def test_array_is_a_run_each(recipe: Path, environ, tmp_path: Path) -> None:
    log = tmp_path / "log-%a"
    wait_for_job(
        _submit(
            environ, log, recipe, f"run_dir={tmp_path}/run_%a", "train.seed=%a", options=("--array=1-2", "--ntasks=1")
        ),
        environ,
    )
    first, second = losses(tmp_path / "run_1"), losses(tmp_path / "run_2")
    assert len(first) == len(second) == 20 and first != second


def test_mistake_in_the_recipe(recipe: Path, environ, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wait_for_job(_submit(environ, log, recipe, "train.sed=1"), environ)
    assert log.read_text().startswith("error: ") and "train.sed" in log.read_text()
