"""Launch scripts as a user calls them: mistakes end in one line and exit code 2 before any process is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT, launched

TORCHRUN, MPIRUN, MSRUN, TRAIN, SLURM = "torchrun.sh", "mpirun.sh", "msrun.sh", "train.sh", "slurm.sbatch"
SCRIPTS = [TORCHRUN, MPIRUN, MSRUN, TRAIN, SLURM]


def _run(script: str, *arguments: str, **environ: str) -> tuple[int, str, str]:
    with launched(script, *arguments, environ=environ) as job:
        return job.finish()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_nothing(script: str) -> None:
    code, output, errors = _run(script, "--help", PATH="/usr/bin:/bin")
    assert (code, errors) == (0, "")
    assert f"launch/{script}" in output and "Example: " in output and "Exit code: " in output


@pytest.mark.parametrize(
    ("script", "arguments", "environ", "complaint"),
    [
        (TORCHRUN, [], {}, "name a recipe"),
        (TORCHRUN, ["--nproc-per-node"], {}, "--nproc-per-node needs a value"),
        (TORCHRUN, ["--nproc-per-node", "two", "recipe.yaml"], {}, "not 'two'"),
        (TORCHRUN, ["--processes", "2", "recipe.yaml"], {}, "unknown option --processes"),
        (TORCHRUN, ["recipe.yaml"], {"NPROC_PER_NODE": "0"}, "at least 1, not '0'"),
        (TORCHRUN, ["--nnodes=2", "--rdzv-endpoint=a:1", "--node-rank=2", "recipe.yaml"], {}, "not below --nnodes 2"),
        (TORCHRUN, ["--nnodes=2", "--rdzv-endpoint=a:1", "--node-rank=b", "recipe.yaml"], {}, "not 'b'"),
        (TORCHRUN, ["--nnodes=4:2", "--rdzv-endpoint=a:1", "recipe.yaml"], {}, "at least 4, not '2'"),
        (TORCHRUN, ["--nnodes=2:", "--rdzv-endpoint=a:1", "recipe.yaml"], {}, "--nnodes"),
        (TORCHRUN, ["recipe.yaml"], {"NNODES": "2", "NODE_RANK": "1"}, "--rdzv-endpoint"),
        (TORCHRUN, ["--nproc-per-node", "2", "missing.yaml"], {}, "missing.yaml: recipe not found"),
        (MPIRUN, [], {}, "name a recipe"),
        (MPIRUN, ["--hosts", "a,,b", "recipe.yaml"], {}, "not 'a,,b'"),
        (MPIRUN, ["--hosts", "a:8,b:8", "recipe.yaml"], {}, "not 'a:8,b:8'"),
        (MSRUN, [], {}, "name a recipe"),
        (MSRUN, ["--nnodes", "2", "recipe.yaml"], {}, "--node-rank must be a whole number"),
        (MSRUN, ["--nnodes", "2", "--node-rank", "2", "recipe.yaml"], {}, "not below --nnodes 2"),
        (MSRUN, ["--nnodes", "2", "--node-rank", "0", "recipe.yaml"], {}, "--master-addr"),
        (TRAIN, [], {}, "name a recipe"),
        (TRAIN, ["recipe.yaml"], {"SLURM_JOB_NUM_NODES": "4"}, "sbatch launch/slurm.sbatch"),
        (SLURM, ["recipe.yaml"], {}, "start it with sbatch"),
        (SLURM, ["recipe.yaml"], {"SLURM_SUBMIT_DIR": "/"}, "submit in the project's folder"),
    ],
)
def test_mistake_is_one_line(script: str, arguments: list[str], environ: dict[str, str], complaint: str) -> None:
    code, output, errors = _run(script, *arguments, **{"SLURM_SUBMIT_DIR": str(ROOT), **environ})
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert complaint in errors
    assert "launch:" not in output


def test_an_mpirun_that_nobody_knows(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho HomeMPI 1.0\n")
    (tmp_path / "mpirun").chmod(0o755)
    python = Path(sys.executable).parent
    code, _, errors = _run(MPIRUN, str(recipe), PATH=f"{tmp_path}:{python}:/usr/bin:/bin")
    assert code == 2 and errors.count("\n") == 1 and "as 'mpirun --version' says: HomeMPI 1.0" in errors
