"""An unfinished run never ends with 0, on no node, however it was stopped; nothing waits without a line.

bash tests/run.sh -m slow tests/launch/test_unfinished.py
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.processes.launched import Job, launched
from tests.helpers.processes.ranks import free_port
from tests.helpers.training.small_run import metrics

pytestmark = pytest.mark.timeout(900)
LONG = ["checkpoint.save_every_steps=1000", "train.train_tokens=null"]


def _node(number: int, port: int, recipe: Path, run_dir: Path, *options: object, overrides=LONG):
    place = ["--nnodes", 2, "--node-rank", number, "--rdzv-endpoint", f"localhost:{port}", "--nproc-per-node", 1]
    return launched("torchrun.sh", *place, *options, recipe, f"run_dir={run_dir}", *overrides)


def _trained(run_dir: Path, steps: int = 3) -> bool:
    return (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= steps


@pytest.mark.slow
@pytest.mark.parametrize("drained", [0, 1])
@pytest.mark.parametrize("options", [[], ["--restarts", 3, "--restart-delay", 0]])
def test_a_drained_node_ends_all_as_stopped(drained: int, options: list, recipe: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two launchers, as Kubernetes drains a node: both end with 143 within seconds."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_node(number, port, recipe, tmp_path, *options)) for number in (0, 1)]
        nodes[0].wait_for(lambda: _trained(tmp_path))
        nodes[drained].script.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        ends = [node.finish() for node in nodes]
    assert time.monotonic() - asked < 60
    assert [code for code, _, _ in ends] == [143, 143], ends
    assert all("; restart " not in output and "Traceback" not in errors for _, output, errors in ends)
    assert all("launch: stopped as it was asked to at step" in output for _, output, _ in ends)
    assert (tmp_path / "preempted.json").exists()


FAKE_MPIRUN = """#!/bin/sh
case "$*" in *--version*) echo 'mpirun (Open MPI) 5.0.0'; exit ;; esac
mkdir -p "$FAKE_RUN"
echo step_8 >"$FAKE_RUN/latest"
echo '{"step": 8, "time": 1}' >"$FAKE_RUN/preempted.json"
exit $FAKE_CODE
"""


@pytest.mark.parametrize(("code", "expected"), [("0", 143), ("1", 143), ("130", 130)])
def test_a_launcher_that_hides_the_stop(code: str, expected: int, recipe: Path, tmp_path: Path) -> None:
    """Whatever the site's mpirun makes of ranks that were asked to stop: the new marker counts."""
    mpirun = tmp_path / "bin" / "mpirun"
    mpirun.parent.mkdir()
    mpirun.write_text(FAKE_MPIRUN)
    mpirun.chmod(0o755)
    run_dir = tmp_path / "run"
    environ: Mapping[str, str] = {
        "PATH": f"{mpirun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FAKE_RUN": str(run_dir),
        "FAKE_CODE": code,
    }
    with launched("mpirun.sh", "--nproc-per-node", 1, recipe, f"run_dir={run_dir}", environ=environ) as job:
        found, output, errors = job.finish()
    assert found == expected, errors
    assert "launch: stopped as it was asked to at step 8" in output


def _trains(job: Job, run_dir: Path, steps: int) -> bool:
    return _trained(run_dir, steps) and len(job.ranks()) == 2


def _gone(job: Job, ranks: set[int]) -> bool:
    return not ranks & {*job.ranks()}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["mpirun.sh", "torchrun.sh"])
def test_a_killed_rank_is_started_again_while_checkpoints_are_won(script: str, recipe: Path, tmp_path: Path) -> None:
    """The same rule in every launcher: twice killed after a new checkpoint, one start without a newer one allowed."""
    length = ["train.train_tokens=51200"]
    options = ["--nproc-per-node", 2, "--restarts", 1, "--restart-delay", 0]
    with launched(script, *options, recipe, f"run_dir={tmp_path}", *length) as job:
        for steps in (6, 16):
            job.wait_for(functools.partial(_trains, job, tmp_path, steps))
            ranks = {*job.ranks()}
            os.kill(max(ranks), signal.SIGKILL)
            job.wait_for(functools.partial(_gone, job, ranks))
        code, output, errors = job.finish()
    assert code == 0, errors
    assert output.count("restart 1 of 1 without a newer checkpoint, from step") == 2
    assert len(metrics(tmp_path)) == 100


@pytest.mark.slow
def test_a_launcher_that_goes_at_the_end_costs_a_minute_and_no_trace(recipe: Path, tmp_path: Path) -> None:
    """kill -9 of one of two launchers after its rank has come to the end: the other one waits for it in vain."""
    port = free_port()
    overrides = ["train.train_tokens=10240"]
    with (
        _node(0, port, recipe, tmp_path, overrides=overrides) as first,
        _node(1, port, recipe, tmp_path, overrides=overrides) as second,
    ):
        first.wait_for(lambda: first.ranks() and second.ranks())
        launcher = second.launcher()
        os.kill(launcher, signal.SIGSTOP)
        first.wait_for(lambda: not first.ranks())
        os.kill(launcher, signal.SIGKILL)
        ended = time.monotonic()
        code, _, errors = first.finish()
    assert code == 0 and time.monotonic() - ended < 90
    assert "waiting for the launchers of the other nodes to end, at most 60 s" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_node_that_does_not_come_is_waited_for_with_a_line(recipe: Path, tmp_path: Path) -> None:
    port = free_port()
    with _node(0, port, recipe, tmp_path) as node:
        time.sleep(70)
        errors = _ended(node)
    assert f"waiting for the other 1 of 2 nodes to come to localhost:{port}, 30 s by now" in errors
    with launched(
        "torchrun.sh", "--nnodes", 2, "--node-rank", 1, "--rdzv-endpoint", "no-such-host.invalid:1", recipe
    ) as node:
        time.sleep(70)
        errors = _ended(node)
    assert "waiting for the name no-such-host.invalid (--rdzv-endpoint) to lead to an address, 30 s by now" in errors


def _ended(node: Job) -> str:
    node.script.send_signal(signal.SIGTERM)
    code, _, errors = node.finish()
    assert code == 143, errors
    return errors
