"""A run of one process that is stopped: it saves, and its exit code says that it has not come to its end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.training.small_run import NEVER, STEPS, TOKENS_PER_STEP, fit_here, metrics, took_steps, wait_for

LONG = [NEVER, "train.train_tokens=null"]


def start(recipe: Path, run_dir: Path, output: int, *inside: str) -> subprocess.Popen:
    program = [sys.executable, "-m", "megatron_kaiyuan.cli", "train", str(recipe), f"run_dir={run_dir}", *LONG]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*inside, *program], stdout=output, stderr=output, env=environ, start_new_session=True)


def require_saved(run_dir: Path) -> None:
    last = max(metrics(run_dir))
    assert (run_dir / "latest").read_text() == f"step_{last}\n" != "step_0\n"
    assert json.loads((run_dir / "preempted.json").read_text())["step"] == last
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["event"], rows[-1]["step"], rows[-1]["finished"]) == ("stop", last, False)


def pipe() -> tuple[int, int]:
    return os.pipe()


def terminal() -> tuple[int, int]:
    return pty.openpty()


@pytest.mark.parametrize(
    ("opened", "number", "code"),
    [
        (pipe, signal.SIGTERM, 143),
        (terminal, signal.SIGHUP, 129),
        pytest.param(pipe, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_under_lost_output_saves(
    opened: Callable[[], tuple[int, int]], number: signal.Signals, code: int, recipe: Path, tmp_path: Path
) -> None:
    """As ctrl-C under `2>&1 | tee log`, which ends tee first, and as a terminal whose connection is cut."""
    reader, writer = opened()
    with start(recipe, tmp_path, writer) as process:
        os.close(writer)
        wait_for(took_steps(tmp_path, 2), process)
        os.close(reader)
        process.send_signal(number)
        assert process.wait(60) == code
    require_saved(tmp_path)


@pytest.mark.slow
def test_nohup_keeps_its_promise(recipe: Path, tmp_path: Path) -> None:
    with open(os.devnull, "w") as nothing, start(recipe, tmp_path, nothing.fileno(), "nohup") as process:
        wait_for(took_steps(tmp_path, 2), process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0
    assert max(metrics(tmp_path)) > STEPS


@pytest.mark.slow
def test_a_reader_that_hangs_does_not_stop_the_run(recipe: Path, tmp_path: Path) -> None:
    """As a connection that is frozen, and not cut: a pipe that is full from the beginning."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with start(recipe, tmp_path, writer) as process:
        wait_for(took_steps(tmp_path, 2), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    os.close(reader)
    os.close(writer)
    require_saved(tmp_path)


def test_a_step_is_recorded_before_it_is_saved(recipe: Path, tmp_path: Path) -> None:
    """So a kill after the save loses no row: the run would not take that step again."""
    tokens = f"train.train_tokens={3 * TOKENS_PER_STEP}"
    each = ["checkpoint.save_every_steps=1", "checkpoint.asynchronous=false", "monitor.activations_every_steps=1"]
    fit_here(recipe, f"run_dir={tmp_path}", tokens, *each)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    order = [
        (row.get("event", "step"), row["step"]) for row in rows if row.get("event") in (None, "monitor", "checkpoint")
    ]
    expected = [(kind, step) for step in (1, 2, 3) for kind in ("monitor", "step", "checkpoint")]
    assert order == [("checkpoint", 0), *expected]
