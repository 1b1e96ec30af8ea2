"""Training for real under each launcher that is here: the same recipe and seed give the same losses, bit for bit.

    bash tests/run.sh -m slow tests/launch/test_launchers.py    # several nodes, four ranks

`test_slurm_job.py`, `test_msrun.py` and `test_mpich.py` do the same under what has to be installed first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.processes.launched import launched, succeed
from tests.helpers.processes.ranks import free_port
from tests.helpers.training.small_run import losses
from tests.helpers.training.small_run import succeed as train


def _train_on_two_nodes(recipe: Path, run_dir: Path, processes: int, numbered: bool, *overrides: str) -> list[str]:
    """Two scripts as on two machines; what each of them prints."""
    options = ["--nnodes", 2, "--nproc-per-node", processes, "--rdzv-endpoint", f"localhost:{free_port()}"]
    options += ["--log-dir", run_dir / "logs"]
    numbers: Sequence[Sequence[object]] = [["--node-rank", 1], ["--node-rank", 0]] if numbered else [[], []]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(launched("torchrun.sh", *options, *number, recipe, f"run_dir={run_dir}", *overrides))
            for number in numbers
        ]
        ends = [node.finish() for node in nodes]
    assert [code for code, _, _ in ends] == [0, 0], [errors[-2000:] for _, _, errors in ends]
    return [output for _, output, _ in ends]


@pytest.mark.slow
def test_two_nodes(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    outputs = _train_on_two_nodes(recipe, tmp_path, 1, numbered=True)
    assert losses(tmp_path) == losses_under_torchrun
    # Ranks follow the nodes' numbers: rank 0 speaks on node 0.
    assert ["train: step 20/20" in output for output in outputs] == [False, True]
    written = [path.read_text() for path in tmp_path.glob("logs/*/attempt_0/0/stdout.log")]
    assert sorted("train: step 20/20" in text for text in written) == [False, True]


def test_mpirun(recipe: Path, tmp_path: Path) -> None:
    """As two ranks without a launcher; `test_restarts.py` compares what torchrun starts with such ranks."""
    train(2, recipe, f"run_dir={tmp_path / 'forked'}")
    output = succeed("mpirun.sh", "--nproc-per-node", 2, recipe, f"run_dir={tmp_path / 'mpirun'}")
    assert losses(tmp_path / "mpirun") == losses(tmp_path / "forked") and len(losses(tmp_path / "mpirun")) == 20
    assert "train: step 20/20" in output


@pytest.mark.slow
def test_torchrun(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    train(2, recipe, f"run_dir={tmp_path}")
    assert losses(tmp_path) == losses_under_torchrun


@pytest.mark.slow
def test_two_nodes_that_number_themselves(recipe: Path, losses_under_torchrun: list[float], tmp_path: Path) -> None:
    outputs = _train_on_two_nodes(recipe, tmp_path, 1, numbered=False)
    assert losses(tmp_path) == losses_under_torchrun
    assert all("'c10d'" in output for output in outputs)


@pytest.mark.slow
def test_four_ranks(recipe: Path, tmp_path: Path) -> None:
    parallel = "parallel.tensor_model_parallel_size=2"
    succeed("train.sh", "--nproc-per-node", 4, recipe, f"run_dir={tmp_path}/torchrun", parallel)
    succeed("mpirun.sh", "--nproc-per-node", 4, recipe, f"run_dir={tmp_path}/mpirun", parallel)
    _train_on_two_nodes(recipe, tmp_path / "nodes", 2, True, parallel)
    expected = losses(tmp_path / "torchrun")
    assert len(expected) == 20
    assert losses(tmp_path / "mpirun") == losses(tmp_path / "nodes") == expected
