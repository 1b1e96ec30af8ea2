"""A rank that loses its device names its node, so that another try does without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint.layout import point_latest
from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes

# The rank's own way to its end, with a platform or a training that fails as a device does.
PROGRAM = """
import sys
from pathlib import Path
from megatron_kaiyuan.platform.base import NoDevice
from megatron_kaiyuan.train import rank
def fail(*_):
    raise {error}
{place} = fail
rank.run_on_this_rank(Path(sys.argv[1]), ["run_dir=" + sys.argv[2]])
"""
NO_DEVICE = 'NoDevice("platform cuda: torch finds no GPU", whole_node=True)'
NO_MEMORY_CELL = 'RuntimeError("CUDA error: uncorrectable ECC error encountered")'


def _ends(recipe: Path, run_dir: Path, error: str, place: str) -> int:
    program = PROGRAM.format(error=error, place=place)
    if place == "start.train":
        program = program.replace(
            "start.train = fail", "import megatron_kaiyuan.train.start as start\nstart.train = fail"
        )
        program = "from megatron_kaiyuan import platform\nplatform.activate('cpu')\n" + program
    environ = {**os.environ, "SLURMD_NODENAME": "node7"}
    words = [sys.executable, "-c", program, str(recipe), str(run_dir)]
    return subprocess.run(words, env=environ, capture_output=True, timeout=200, check=False).returncode


@pytest.mark.parametrize(("trained", "code"), [(False, 2), (True, 3)])
def test_a_missing_device(trained: bool, code: int, recipe: Path, tmp_path: Path) -> None:
    """A mistake of the first start; of a run that has trained before, the node's fault."""
    if trained:
        point_latest(tmp_path, 8)
    assert _ends(recipe, tmp_path, NO_DEVICE, "rank.platform.activate") == code
    named = read_bad_nodes(tmp_path)
    assert (named.hosts if named else None) == (["node7"] if trained else None)


@pytest.mark.parametrize(("error", "hosts"), [(NO_MEMORY_CELL, ["node7"]), ('RuntimeError("a shape")', None)])
def test_a_device_that_fails_in_training(error: str, hosts: list[str] | None, recipe: Path, tmp_path: Path) -> None:
    assert _ends(recipe, tmp_path, error, "start.train") == 1
    named = read_bad_nodes(tmp_path)
    assert (named.hosts if named else None) == hosts
