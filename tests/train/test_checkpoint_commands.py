"""`kaiyuan checkpoint` on the checkpoints of a real run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.processes.rank_server import run
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import start_from


def checkpoint(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a fork, see `tests/helpers/processes/rank_server.py`."""
    return run(1, ["-m", "megatron_kaiyuan.cli", "checkpoint", *arguments])


def test_diff(finished_run: Path) -> None:
    done = checkpoint("diff", finished_run, 10, 20, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"field": "tokens", "was": 5120, "now": 10240} in found["progress"]
    assert found["config"] == found["versions"] == found["only_in_one"] == []
    groups = {moved["group"]: moved for moved in found["weights"]}
    assert groups.keys() == {"embedding", "norms", "attention", "mlp", "head"}
    before, after = (load(finished_run / "checkpoints" / f"step_{step}")[0]["output_layer.weight"] for step in (10, 20))
    moved = (after.double() - before.double()).norm() / before.double().norm()
    assert groups["head"]["relative"] == pytest.approx(moved.item())
    assert groups["head"]["largest_entry"] == pytest.approx((after - before).abs().max().item())
    assert groups["mlp"]["largest"].startswith("decoder.layers.")
    assert torch.isfinite(torch.tensor([moved["relative"] for moved in groups.values()])).all()


def test_list_verify_and_mistakes(finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 20, start_from(finished_run, 10, tmp_path))
    listed = json.loads(checkpoint("list", run_dir, "--json").stdout)
    assert [one["step"] for one in listed["checkpoints"]] == [10, 20]
    assert "checkpoint verify: 2 checkpoints whole" in checkpoint("verify", run_dir).stdout
    victim = next((run_dir / "checkpoints" / "step_20").glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1])
    for arguments, named in (
        (("verify", run_dir), "1 of 2 checkpoints damaged (step_20)"),
        (("verify", run_dir, "--json"), "1 of 2 checkpoints damaged (step_20)"),
        (("diff", run_dir, 10, 20), f"{victim}: damaged"),
        (("diff", run_dir, 10, 15), "step_15: not found"),
        (("list", tmp_path / "absent"), "holds no checkpoints"),
    ):
        done = checkpoint(*arguments)
        assert done.returncode == 2, done.stdout
        assert named in done.stderr and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
