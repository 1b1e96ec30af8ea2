"""`--preflight` of the launch scripts: passed on, a start after it, and a bad node that ends the script with 3.

bash tests/run.sh -m slow tests/launch/test_preflight_option.py
"""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.exit_codes import BAD_NODE
from tests.helpers.processes.launched import ROOT, launched, succeed
from tests.helpers.training.small_run import losses

LOG = ROOT / "tests" / "doctor" / "driver_output" / "nvidia_smi_l4.xml"


@pytest.mark.parametrize("script", ["torchrun.sh", "mpirun.sh"])
def test_the_ranks_get_the_option(script: str, recipe: Path) -> None:
    for option in ([], ["--preflight"]):
        output = succeed(
            script, *option, "--dry-run", "--nproc-per-node", 2, recipe, environ={"KAIYUAN_VENV": sys.prefix}
        )
        (line,) = (line for line in output.splitlines() if line.startswith("launch: "))
        assert ("'train' '--preflight'" in line) == bool(option)


@pytest.mark.slow
def test_a_run_after_its_preflight(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    """The preflight of ranks that mpirun starts holds a store of its own, those of torchrun use the agent's."""
    for script in ("torchrun.sh", "mpirun.sh"):
        run_dir = tmp_path / script
        with launched(script, "--preflight", "--nproc-per-node", 2, recipe, f"run_dir={run_dir}") as job:
            code, _, errors = job.finish()
        assert code == 0, errors[-3000:]
        assert len(re.findall(r"preflight: 2 ranks on 1 nodes are in order, \d+\.\d s", errors)) == 1
        assert losses(run_dir) == losses_under_torchrun and read_bad_nodes(run_dir) is None


@pytest.mark.slow
def test_a_bad_node(recipe: Path, tmp_path: Path) -> None:
    """A driver that reports an ill device: nothing is trained."""
    ill = LOG.read_text().replace("<remapped_row_failure>No", "<remapped_row_failure>Yes")
    (tmp_path / "log.xml").write_text(ill)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n[ $1 != -q ] || cat {tmp_path}/log.xml\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ["--preflight", "--nproc-per-node", 2, recipe, f"run_dir={tmp_path}/run"]
    with launched("torchrun.sh", *options, environ=environ) as job:
        code, _, errors = job.finish()
    assert code == BAD_NODE, errors
    assert errors.count(f"error: preflight: bad nodes {socket.gethostname()}: health: GPU 00000000:01:00.0") == 1
    found = read_bad_nodes(tmp_path / "run")
    assert found is not None and found.hosts == [socket.gethostname()] and "remapped_row_failure is Yes" in found.why
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
