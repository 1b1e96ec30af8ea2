"""launch/torchrun.sh --nnodes MIN:MAX: a node is lost and the other goes on alone, until it is back.

bash tests/run.sh -m slow tests/launch/test_elastic.py
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.helpers.processes.launched import launched
from tests.helpers.processes.ranks import free_port
from tests.helpers.training.small_run import losses, metrics


def world_sizes(run_dir: Path) -> list[int]:
    """Of each start and resume."""
    with contextlib.suppress(FileNotFoundError):
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [row["world_size"] for row in rows if row.get("event") in ("start", "resume")]
    return []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_leaves_and_comes_back(recipe: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ["--nnodes", "1:2", "--nproc-per-node", 1, "--rdzv-endpoint", f"localhost:{port}"]
    restarts = ["--restarts", 5, "--restart-delay", 1]
    steps = 600
    run = [recipe, f"run_dir={tmp_path}", f"train.train_tokens={512 * steps}", "checkpoint.save_every_steps=20"]
    with contextlib.ExitStack() as stack:
        stays, leaves = (stack.enter_context(launched("torchrun.sh", *options, *restarts, *run)) for _ in range(2))
        stays.wait_for(lambda: len(metrics(tmp_path)) > 30 if world_sizes(tmp_path) else False)
        # As a machine that loses its power; the one that holds the endpoint has to stay.
        if leaves.listens_at(port):
            stays, leaves = leaves, stays
        for process in leaves.processes():
            os.kill(process, signal.SIGKILL)
        stays.wait_for(lambda: world_sizes(tmp_path) == [2, 1])
        back = stack.enter_context(launched("torchrun.sh", *options, *restarts, *run))
        ends = [stays.finish(), back.finish()]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert world_sizes(tmp_path) == [2, 1, 2]
    assert len(losses(tmp_path)) == steps
