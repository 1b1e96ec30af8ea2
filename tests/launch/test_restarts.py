"""launch/torchrun.sh --restarts: goes on without a person, and stops where going on is of no use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "train"))

from small_run import losses, metrics, write_recipe  # noqa: E402


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps with a checkpoint after every second one."""
    path = write_recipe(tmp_path_factory.mktemp("restarts"))
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "checkpoint": {"save_every_steps": 2}}))
    return path


@contextlib.contextmanager
def launched(recipe: Path, run_dir: Path, *options: str) -> Iterator[subprocess.Popen]:
    interpreter = Path(sys.executable).parent
    # Tests in this process may have been a rank themselves.
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment = {
        **inherited,
        "PATH": f"{interpreter}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(interpreter.parent),
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", str(ROOT / "launch" / "torchrun.sh"), "--restart-delay", "0", *options]
    with subprocess.Popen(
        [*command, str(recipe), f"run_dir={run_dir}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def workers(launcher: int) -> list[int]:
    """Training processes below a launch script."""
    found, ahead = [], [launcher]
    while ahead:
        process = ahead.pop()
        with contextlib.suppress(OSError):
            ahead += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if any(entry.startswith(b"LOCAL_RANK=") for entry in environment):
                found.append(process)
    return found


def wait_for(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def trained(run_dir: Path, steps: int) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= steps


def test_a_killed_rank_costs_nothing_but_time(recipe: Path, tmp_path: Path) -> None:
    with launched(recipe, tmp_path / "calm", "--nproc-per-node", "1") as process:
        assert process.wait(120) == 0
    run_dir = tmp_path / "run"
    with launched(recipe, run_dir, "--nproc-per-node", "1", "--restarts", "3") as process:
        for steps in (4, 10):
            wait_for(lambda steps=steps: trained(run_dir, steps) and workers(process.pid), process)
            os.kill(workers(process.pid)[0], signal.SIGKILL)
            wait_for(lambda: not workers(process.pid), process)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "exit code 137; restart 1 of 3" in output and "restart 2 of 3" in output and "restart 3" not in output
    assert losses(run_dir) == losses(tmp_path / "calm") and len(losses(run_dir)) == 20


def test_it_stops_without_progress(recipe: Path, tmp_path: Path) -> None:
    with launched(recipe, tmp_path / "run", "--nproc-per-node", "1", "--restarts", "5") as process:
        killed: set[int] = set()
        while process.poll() is None:
            for worker in set(workers(process.pid)) - killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            time.sleep(0.01)
        output, errors = process.communicate()
    assert process.returncode == 137
    assert len(killed) == 2 and "restart 1 of 5 from step -1" in output and "restart 2" not in output
    assert "restart 1 ended with exit code 137 and without a newer checkpoint" in errors


def test_it_stops_when_asked_to(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with launched(recipe, run_dir, "--nproc-per-node", "1", "--restarts", "5") as process:
        wait_for(lambda: trained(run_dir, 2), process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "; restart " not in output
    assert (run_dir / "latest").read_text().strip() == f"step_{max(metrics(run_dir))}"


@pytest.mark.slow
def test_it_stops_at_a_mistake(recipe: Path, tmp_path: Path) -> None:
    """One that only training itself can find: the folder holds a checkpoint, but none that is whole."""
    step = tmp_path / "run" / "checkpoints" / "step_0"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    with launched(recipe, tmp_path / "run", "--nproc-per-node", "1", "--restarts", "5") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "no checkpoint is whole" in errors
    assert "; restart " not in output
