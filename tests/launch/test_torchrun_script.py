"""launch/torchrun.sh as a user calls it: mistakes end in one line and exit code 2 before any process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"


def _run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    interpreter = Path(sys.executable).parent
    chosen = {"PATH": f"{interpreter}:{os.environ['PATH']}", "VIRTUAL_ENV": str(interpreter.parent), **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_needs_nothing(tmp_path: Path) -> None:
    result = _run("--help", folder=tmp_path)
    assert result.returncode == 0
    assert "Example: launch/torchrun.sh" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ([], {}, "name a recipe"),
        (["--nproc-per-node"], {}, "--nproc-per-node needs a value"),
        (["--nproc-per-node", "two", "recipe.yaml"], {}, "not 'two'"),
        (["--processes", "2", "recipe.yaml"], {}, "unknown option --processes"),
        (["recipe.yaml"], {"NPROC_PER_NODE": "0"}, "at least 1, not '0'"),
        (["--nnodes=2", "recipe.yaml"], {}, "--node-rank"),
        (["--nnodes=2", "--node-rank=2", "recipe.yaml"], {}, "not below --nnodes 2"),
        (["recipe.yaml"], {"NNODES": "2", "NODE_RANK": "1"}, "--rdzv-endpoint"),
        (["--nproc-per-node", "2", "missing.yaml"], {}, "missing.yaml: recipe not found"),
    ],
)
def test_mistake_is_one_line(arguments: list[str], environment: dict[str, str], complaint: str, tmp_path: Path) -> None:
    result = _run(*arguments, folder=tmp_path, **environment)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert "launch:" not in result.stdout
