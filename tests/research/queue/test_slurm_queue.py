"""`--engine slurm` on Slurm's own daemons: the local engine's table, whatever happens to the array's tasks.

apt-get install slurm-wlm munge
bash tests/run.sh -m root tests/research/queue/test_slurm_queue.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue import Run, run_all
from megatron_kaiyuan.research.queue.request import write_list
from megatron_kaiyuan.research.queue.slurm import Array, submit
from tests.helpers.processes.slurm_cluster import slurm_cluster
from tests.helpers.training.run_lists import (
    WORKER,
    make_run,
    make_runs,
    require_all_whole,
    whole_runs,
    without_times,
    work,
)
from tests.helpers.training.small_run import events

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[3]
ONE_CORE = Array(2, ("--cpus-per-task=1",))


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    with slurm_cluster() as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        # A task is no child of this process, and must not look for the end of a launcher.
        patch.setenv("KAIYUAN_PARENT", str(os.getpid()))
        yield


@pytest.fixture(scope="module")
def runs(queue_recipe: Path) -> list[Run]:
    """Of some seconds each, with a checkpoint at every tenth step."""
    return make_runs(queue_recipe, 4, "checkpoint.save_every_steps=10", steps=40)


@pytest.fixture(scope="module")
def undisturbed(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The local engine's table."""
    return without_times(work(tmp_path_factory.mktemp("local"), runs)["rows"])


def logs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "slurm").glob("*.out"))}


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(folder: Path) -> list[Path]:
    """Folders of runs that have trained a step and have no result yet."""
    found = (folder / "runs").glob("*/metrics.jsonl")
    return [
        path.parent for path in found if '"loss"' in path.read_text() and not (path.parent / "result.json").exists()
    ]


def started_queue(path: Path) -> subprocess.Popen[str]:
    """The process that submits an array and waits for it."""
    command = [sys.executable, *WORKER, str(path), "--array", "2", "--sbatch=--cpus-per-task=1"]
    environ = {name: value for name, value in os.environ.items() if name != "KAIYUAN_PARENT"}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(path: Path) -> list[psutil.Process]:
    """Tasks of arrays at work on a list: not the process that waits for them, nor their forks."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if str(path) in words and "--attempt" in words:
            found.append(process)
    pids = {process.pid for process in found}
    return [process for process in found if process.info["ppid"] not in pids]


def test_the_local_engines_table_by_two_tasks(
    runs: list[Run], undisturbed: list[dict], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = run_all(tmp_path, runs, array=Array(2, ("--cpus-per-task=1", "--job-name=mine", "--comment=two words")))
    assert without_times(rows) == undisturbed
    folders = list((tmp_path / "runs").glob("[!.]*"))
    assert len(folders) == 4 and all(len(events(folder, "start")) == 1 for folder in folders)
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "queue: 0 of 4 runs done" and "2 tasks, is submitted" in told[1]
    assert told[-1] == "queue: 4 of 4 runs done"
    # Of the node's four processors each task has been given one.
    assert sorted(logs(tmp_path)) == [f"{number}_{task}.out" for number in [told[1].split()[2][:-1]] for task in (0, 1)]
    assert all("on 1 slots" in said for said in logs(tmp_path).values() if " left" in said)
    number = told[1].split()[2][:-1]
    job = subprocess.run(["scontrol", "show", "job", f"{number}_0"], capture_output=True, text=True, check=True).stdout
    assert "JobName=mine" in job and "Comment=two words" in job and "CPUs/Task=1" in job


def test_a_cancelled_task_and_a_killed_step(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    """The other tasks do what is left, or the same command does; no run is begun twice that was whole."""
    path = write_list(tmp_path, runs).resolve()
    with started_queue(path) as queue:
        wait_until(lambda: len(at_work(tmp_path)) == 2)
        # What Slurm's node starts for a step; without it nothing of Slurm's knows the task any longer.
        step = workers(path)[0].parent()
        assert step is not None and "slurmstepd" in step.name()
        step.kill()
        queue.wait(300)
        assert queue.stderr is not None and queue.stdout is not None
        number = next(line.split()[2][:-1] for line in queue.stderr if "is submitted" in line)
    # Slurm's node takes minutes to find out that a step is gone.
    subprocess.run(["scancel", number], check=True)
    wait_until(lambda: not workers(path))
    before = whole_runs(tmp_path)

    with started_queue(path) as queue:
        if len(before) < len(runs):
            wait_until(lambda: at_work(tmp_path) or queue.poll() is not None)
            newest = max(int(name.partition("_")[0]) for name in logs(tmp_path))
            subprocess.run(["scancel", f"{newest}_0"], check=True)
        queue.wait(300)
    require_all_whole(tmp_path, runs, undisturbed, before)


def test_ctrl_c_cancels_the_array_and_its_runs_are_saved(
    runs: list[Run], undisturbed: list[dict], tmp_path: Path
) -> None:
    path = write_list(tmp_path, runs).resolve()
    with started_queue(path) as queue:
        wait_until(lambda: len(at_work(tmp_path)) == 2)
        queue.send_signal(signal.SIGINT)
        assert queue.wait(120) == 128 + signal.SIGINT
        assert queue.stderr is not None and "is cancelled; waiting until its runs are saved" in queue.stderr.read()
    assert not workers(path)
    stopped = [folder for folder in (tmp_path / "runs").glob("[!.]*") if events(folder, "stop")]
    saved = [events(folder, "stop")[0]["step"] for folder in stopped]
    assert [(folder / "latest").read_text().strip() for folder in stopped if (folder / "latest").exists()] == [
        f"step_{step}" for folder, step in zip(stopped, saved, strict=True) if (folder / "latest").exists()
    ]
    assert saved
    require_all_whole(tmp_path, runs, undisturbed, whole_runs(tmp_path))


def test_a_lost_terminal_leaves_the_array_at_work(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    path = write_list(tmp_path, runs).resolve()
    with started_queue(path) as queue:
        wait_until(lambda: at_work(tmp_path))
        queue.send_signal(signal.SIGHUP)
        assert queue.wait(30) == 128 + signal.SIGHUP
    wait_until(lambda: not workers(path))
    assert len(whole_runs(tmp_path)) == len(runs)
    # No array is needed any more.
    assert without_times(run_all(tmp_path, runs, array=ONE_CORE)) == undisturbed


def test_a_run_that_fails_is_tried_once_and_told(queue_recipe: Path, tmp_path: Path) -> None:
    bad = make_run(queue_recipe, "too long", "train.train_tokens=1_000_000_000")
    with pytest.raises(
        UserError, match=r"1 of 4 runs failed, such as 'too long': exit code 2 .*1,000,000,000 asked for"
    ):
        run_all(tmp_path, [bad, *make_runs(queue_recipe, 3)], array=ONE_CORE)
    (log,) = [path for path in (tmp_path / "runs").glob("*/log.txt") if "asked for" in path.read_text()]
    assert log.read_text().count("asked for") == 1
    assert len(whole_runs(tmp_path)) == 3


def test_an_array_that_ends_too_soon_is_told_with_its_last_line(runs: list[Run], tmp_path: Path) -> None:
    path = write_list(tmp_path, runs).resolve()
    with started_queue(path) as queue:
        wait_until(lambda: workers(path))
        assert queue.stderr is not None and queue.stdout is not None
        number = next(line.split()[2][:-1] for line in queue.stderr if "is submitted" in line)
        subprocess.run(["scancel", number], check=True)
        queue.wait(120)
        assert f"job {number} has ended before, its last line was: " in queue.stdout.read()
    with pytest.raises(UserError, match=r"job .* has ended before, .*the same command continues"):
        run_all(tmp_path, [*runs, *too_many(runs)], array=Array(1, ("--time=0:01", "--cpus-per-task=1")))


def too_many(runs: list[Run]) -> list[Run]:
    """More than a minute holds."""
    return [Run(f"more {seed}", runs[0].recipe, (*runs[0].overrides, f"train.seed={seed}")) for seed in range(50, 200)]


def test_each_task_has_a_device_of_its_own(tmp_path: Path) -> None:
    """Two tasks of `--gpus=1` on the node's two GPUs, at the same time."""
    code = (
        "import time; from megatron_kaiyuan.research.queue.slots import find_platform, find_slots\n"
        "print(find_platform({'auto'}), find_slots('cuda'), flush=True); time.sleep(3)"
    )
    job = submit(Array(2, ("--gpus=1",)), [sys.executable, "-c", code], tmp_path)
    wait_until(job.has_ended)
    assert sorted(logs(tmp_path).values()) == [f"cuda [{{'CUDA_VISIBLE_DEVICES': '{name}'}}]\n" for name in "01"]
