"""Which Python the launch scripts take, of several that there may be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes.launched import ROOT

CHOOSE = f"set -euo pipefail; source '{ROOT}/launch/common.sh'; use_project_environment; command -v python"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """conda's base: an active environment whose Python has nothing of this project."""
    folder = tmp_path / "conda" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\nexit 1\n")
    (folder / "python").chmod(0o755)
    return folder.parent


def choose(base: Path, root: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    active = {
        "PATH": f"{base}/bin:/usr/bin:/bin",
        "CONDA_PREFIX": str(base),
        "CONDA_DEFAULT_ENV": "base",
    }
    code = CHOOSE.replace(str(ROOT), str(root))
    return subprocess.run(["bash", "-c", code], env={**active, **environ}, cwd="/", capture_output=True, text=True)


def test_the_one_that_was_named_goes_before_an_active_one(base: Path, tmp_path: Path) -> None:
    assert choose(base, KAIYUAN_VENV=sys.prefix).stdout == f"{sys.prefix}/bin/python\n"
    done = choose(base, KAIYUAN_VENV=str(tmp_path / "none"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: KAIYUAN_VENV={tmp_path / 'none'} has no Python with megatron_kaiyuan")


def test_an_active_one_with_the_project_is_taken(base: Path) -> None:
    assert choose(base, PATH=f"{sys.prefix}/bin:{os.environ['PATH']}").stdout == f"{sys.prefix}/bin/python\n"


def test_an_active_one_without_the_project_is_passed_over(base: Path, tmp_path: Path) -> None:
    """For the project's own, or for the one that wrote the scripts; with none of them a line says what to do."""
    for name in ("common.sh", "env_nccl.sh", "env_ascend.sh"):
        (tmp_path / "mine" / "launch").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    done = choose(base, tmp_path / "mine")
    assert done.returncode == 2 and "activate the environment where it is installed" in done.stderr
    (tmp_path / "mine" / "launch" / "environment").write_text(f"{sys.prefix}/bin\n")
    assert choose(base, tmp_path / "mine").stdout == f"{sys.prefix}/bin/python\n"
    (tmp_path / "mine" / ".venv").symlink_to(sys.prefix)
    assert choose(base, tmp_path / "mine").stdout == f"{tmp_path}/mine/.venv/bin/python\n"
