"""launch/slurm.sbatch under a real Slurm that takes nodes away, loses ranks and names bad nodes.

apt-get install slurm-wlm munge
bash tests/run.sh -m root tests/launch/test_slurm_ends.py
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_kaiyuan import exit_codes
from megatron_kaiyuan.checkpoint.layout import step_folder
from megatron_kaiyuan.checkpoint.load import stored_tensors
from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.cluster.groups import single_process
from megatron_kaiyuan.platform.cpu import CpuPlatform
from tests.helpers.processes.ill_driver import ill_driver
from tests.helpers.processes.launched import ROOT
from tests.helpers.processes.slurm_cluster import slurm_cluster, wait_for_job
from tests.helpers.training.small_run import losses, metrics

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(2400),
]

# As a site has it that lets jobs save before they give way; KillWait of 20 seconds shortens the tests.
PREEMPTION = """
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
STEPS = 800


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with slurm_cluster(nodes=2, more=PREEMPTION) as found:
        interpreter = Path(sys.executable).parent
        path = f"{interpreter}{os.pathsep}{found['PATH']}"
        yield {**found, "PATH": path, "VIRTUAL_ENV": str(interpreter.parent), "PYTHONPATH": str(ROOT)}


class SlurmJob:
    """A job of two ranks in the partition `low`, in a run folder of its own."""

    def __init__(
        self,
        environ: dict[str, str],
        folder: Path,
        recipe: Path,
        *options: str,
        steps: int = STEPS,
        overrides: Sequence[str] = (),
    ):
        self.environ, self.log, self.run_dir = environ, folder / "log", folder / "run"
        words = ["sbatch", "--parsable", "--partition=low", f"--output={self.log}", "--nodes=1"]
        words += [
            "--ntasks-per-node=2",
            "launch/slurm.sbatch",
            *options,
            str(recipe),
            f"run_dir={self.run_dir}",
            f"train.train_tokens={512 * steps}",
        ]
        words += ["checkpoint.save_every_steps=40", *overrides]
        self.number = self.command(*words).strip()

    def command(self, *words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, env=self.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def events(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.run_dir / "metrics.jsonl").read_text().count(f'"event": "{name}"')
        return 0

    def field(self, name: str) -> str:
        shown = self.command("scontrol", "show", "job", self.number, "--oneliner")
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def wait_until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 900
        while not happened():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def wait_for_steps(self, starts: int) -> None:
        """Until so many starts have begun and the last one has taken some steps."""
        self.wait_until(lambda: self.events("start") + self.events("resume") == starts)
        taken = len(metrics(self.run_dir))
        self.wait_until(lambda: len(metrics(self.run_dir)) > taken + 8)

    def preempt(self) -> str:
        """Let a job that comes first ask for all nodes; its number."""
        return self.command("sbatch", "--parsable", "-phigh", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 1")

    def rank(self, number: int) -> psutil.Process:
        """Return the process that trains, not the one that waits for its exit code."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                place = process.environ()
                ours = place.get("SLURM_JOB_ID") == self.number and place.get("SLURM_PROCID") == str(number)
                words = process.cmdline()
                if ours and words[1:4] == ["-m", "megatron_kaiyuan.cli", "train"]:
                    return process
        raise LookupError(self.said())


def all_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer of the last step."""
    folder = step_folder(run_dir, STEPS)
    with single_process(CpuPlatform()):
        return dist_checkpointing.load(stored_tensors(folder), str(folder), validate_access_integrity=False)


def test_a_job_that_is_preempted_twice_and_loses_a_rank_ends_as_an_undisturbed_one(
    recipe: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """Steps get SIGTERM, the batch script does not; between them a rank is killed as for want of memory."""
    for name in ("calm", "hit"):
        (tmp_path / name).mkdir()
    job = SlurmJob(environ, tmp_path / "hit", recipe)
    job.wait_for_steps(1)
    job.preempt()
    job.wait_for_steps(2)
    job.rank(1).send_signal(signal.SIGKILL)
    job.wait_for_steps(3)
    job.preempt()
    wait_for_job(job.number, environ, seconds=900)
    said = job.said()
    assert said.count("launch: saved at step") == 2 and said.count(f"job {job.number} is queued again") == 3, said
    assert said.count("launch: ended with exit code ") == 1 and "restart 1 of 3 without a newer checkpoint" in said
    assert job.events("resume") == 3 and f"train: step {STEPS}/{STEPS}" in said
    assert not (job.run_dir / "preempted.json").exists() and not (job.run_dir / "restarts.json").exists()

    calm = SlurmJob(environ, tmp_path / "calm", recipe)
    wait_for_job(calm.number, environ, seconds=900)
    assert calm.events("resume") == 0
    assert losses(job.run_dir) == losses(calm.run_dir) and len(losses(calm.run_dir)) == STEPS
    ours, theirs = all_tensors(job.run_dir), all_tensors(calm.run_dir)
    names = {name for name in theirs if isinstance(theirs[name], torch.Tensor)}
    assert ours.keys() == theirs.keys() and any(name.startswith("optimizer") for name in names)
    assert [name for name in names if not torch.equal(ours[name], theirs[name])] == []


def test_cancelled_for_good(recipe: Path, environ: dict[str, str], tmp_path: Path) -> None:
    job = SlurmJob(environ, tmp_path, recipe)
    job.wait_for_steps(1)
    job.command("scancel", job.number)
    wait_for_job(job.number, environ, seconds=900)
    assert (job.run_dir / "preempted.json").exists() and "queued again" not in job.said()


def _started(job: SlurmJob, times: int) -> bool:
    return job.said().count("launch: OMP_NUM_THREADS=") == times


def test_it_gives_up_without_progress(recipe: Path, environ: dict[str, str], tmp_path: Path) -> None:
    with_limit = {**environ, "RESTARTS": "1"}
    job = SlurmJob(with_limit, tmp_path, recipe)
    for start in (1, 2):
        job.wait_until(functools.partial(_started, job, start))
        job.wait_until(lambda: _has_rank(job))
        job.rank(1).send_signal(signal.SIGKILL)
    wait_for_job(job.number, environ, seconds=900)
    assert job.said().count("restart 1 of 1 without a newer checkpoint, from the beginning") == 1, job.said()
    assert (job.field("JobState"), job.field("Restarts")) == ("FAILED", "1")


def _has_rank(job: SlurmJob) -> bool:
    with contextlib.suppress(LookupError):
        return bool(job.rank(1))
    return False


def test_the_node_that_the_watchdog_names_is_left_out(recipe: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """Two nodes could take the job; the one that it was on hangs."""
    job = SlurmJob(environ, tmp_path, recipe, steps=400, overrides=["faults.hang_timeout_seconds=12"])
    job.wait_for_steps(1)
    first = job.field("NodeList")
    job.rank(1).send_signal(signal.SIGSTOP)
    wait_for_job(job.number, environ, seconds=900)
    named = read_bad_nodes(job.run_dir)
    assert named is not None and named.hosts == [first] and "rank 1 does not answer" in named.why
    assert f"job {job.number} is queued again without {first}" in job.said()
    assert job.field("ExcNodeList") == first and job.field("NodeList") != first
    assert len(losses(job.run_dir)) == 400


def test_the_node_that_the_preflight_names_is_left_out(recipe: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """A driver reports an ill device on the first node, where Slurm starts the job."""
    with_driver = {**environ, "PATH": f"{ill_driver(tmp_path / 'ill', only_on='node1')}:{environ['PATH']}"}
    job = SlurmJob(with_driver, tmp_path, recipe, "--preflight", steps=40)
    wait_for_job(job.number, environ, seconds=900)
    said = job.said()
    assert "error: preflight: bad nodes node1: health: GPU 00000000:01:00.0" in said
    assert f"launch: ended with exit code {exit_codes.BAD_NODE}; restart 1 of 3" in said
    assert f"job {job.number} is queued again without node1" in said
    assert "preflight: 2 ranks on 1 nodes are in order" in said
    assert job.field("NodeList") == "node2" and job.field("ExitCode") == "0:0"
    assert len(losses(job.run_dir)) == 40
