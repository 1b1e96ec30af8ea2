"""GPUs, options and logs of the ranks of launch/slurm.sbatch, under a real Slurm whose GPUs are null devices.

apt-get install slurm-wlm munge
bash tests/run.sh -m root tests/launch/test_slurm_devices.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT
from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job
from tests.helpers.training.small_run import losses

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

# Python imports it at the start of every process: what a rank sees, before any of the project's code.
RECORDER = """
import json, os
if os.environ.get("SLURM_STEP_ID", "batch").isdigit() and len(os.environ["SLURM_STEP_ID"]) < 6:
    with open(os.path.join(os.environ["RECORDS"], os.environ["SLURM_PROCID"]), "w") as file:
        json.dump(dict(os.environ), file)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with slurm_cluster() as found:
        interpreter = Path(sys.executable).parent
        yield {**found, "PATH": f"{interpreter}:{found['PATH']}", "VIRTUAL_ENV": str(interpreter.parent)}


class Job:
    """One job that has ended: its log, and the environment of each rank."""

    def __init__(self, cluster: dict[str, str], folder: Path, options: tuple[str, ...], *words: object, **more: str):
        records = folder / "records"
        records.mkdir()
        (folder / "sitecustomize.py").write_text(RECORDER)
        environ = {**cluster, "PYTHONPATH": f"{folder}:{ROOT}", "RECORDS": str(records), "RESTARTS": "0", **more}
        sbatch = ["sbatch", "--parsable", "--ntasks-per-node=2", f"--output={folder}/log", *options]
        done = subprocess.run(
            [*sbatch, "launch/slurm.sbatch", *map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()
        wait_for_job(self.number, environ)
        self.log = (folder / "log").read_text()
        self.ranks = [json.loads(path.read_text()) for path in sorted(records.iterdir())]

    def visible(self) -> list[str | None]:
        return [rank.get("CUDA_VISIBLE_DEVICES") for rank in self.ranks]


@pytest.mark.parametrize(
    ("options", "visible"),
    [
        ((), ["0,1", "0,1"]),
        (("--gpus-per-node=2",), ["0,1", "0,1"]),
        (("--gpus-per-node=h100:2",), ["0,1", "0,1"]),
        (("--gres=gpu:2",), ["0,1", "0,1"]),
        (("--gres=gpu:h100:2",), ["0,1", "0,1"]),
        (("--gpus=2",), ["0,1", "0,1"]),
        (("--gpus-per-task=1",), ["0", "1"]),
    ],
    ids=" ".join,
)
def test_ranks_get_the_gpus_of_the_job(
    options: tuple[str, ...], visible: list[str], recipe: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    """They are null devices: `platform: auto` refuses the processor of a node that has GPUs."""
    job = Job(cluster, tmp_path, options, recipe, f"run_dir={tmp_path}/run", "platform=auto")
    assert job.visible() == visible, job.log
    assert [rank["SLURM_GPUS_ON_NODE"] for rank in job.ranks] == ["2", "2"]
    assert "error: platform: this node has 2 GPUs (SLURM_JOB_GPUS) and this process sees none: " in job.log
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and "train: step" not in job.log


def test_step_without_the_gpus_of_its_job(recipe: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    job = Job(
        cluster, tmp_path, (), recipe, f"run_dir={tmp_path}/run", "platform=auto", KAIYUAN_SRUN_OPTIONS="--gres=none"
    )
    assert job.visible() == [None, None]
    assert "the job has them and srun's step does not; give srun --gpus-per-node" in job.log


def test_options_and_logs_of_the_ranks(recipe: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    """A program between srun and the ranks, words with spaces, and a file for each rank's output."""
    logs, named = tmp_path / "log s", "two words; $(touch evaluated)"
    job = Job(
        cluster,
        tmp_path,
        ("--cpus-per-task=2",),
        recipe,
        f"run_dir={tmp_path}/run",
        LOG_DIR=str(logs),
        KAIYUAN_SRUN_OPTIONS=f"--cpu-bind=none --job-name='{named}' env GIVEN='{named}'",
    )
    assert [rank["GIVEN"] for rank in job.ranks] == [named, named], job.log
    assert [rank["SLURM_CPUS_PER_TASK"] for rank in job.ranks] == ["2", "2"]
    assert not list(ROOT.glob("evaluated"))
    assert len(losses(tmp_path / "run")) == 20
    assert sorted(path.name for path in logs.iterdir()) == [f"{job.number}-{rank:04}.log" for rank in range(2)]
    assert "train: step 20/20" in (logs / f"{job.number}-0000.log").read_text()
    assert f"launch: the output of rank R is in {logs}/" in job.log and "train: step" not in job.log


def test_quote_that_is_not_closed(recipe: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    job = Job(cluster, tmp_path, (), recipe, KAIYUAN_SRUN_OPTIONS="--comment='open")
    assert job.log.endswith(
        "error: KAIYUAN_SRUN_OPTIONS has a quote that is not closed: --comment='open; see launch/slurm.sbatch --help\n"
    )
    assert not job.ranks and os.environ.get("SLURM_JOB_ID") is None
