"""Where this project does not run, one line says so before anything else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What Python has on Linux only, and the project uses.
ELSEWHERE = """
import os, sys, time
sys.platform = "darwin"
del os.sched_getaffinity, time.CLOCK_BOOTTIME
sys.argv = ["command", *sys.argv[1:]]
from {module} import main
main()
"""


@pytest.mark.parametrize("module", ["megatron_kaiyuan.cli", "data_tools.cli"])
@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["preprocess", "--workers", "0"]])
def test_commands(module: str, arguments: list[str]) -> None:
    command: list[str | Path] = [sys.executable, "-c", ELSEWHERE.format(module=module), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    line = "error: this project runs on Linux only, and this is darwin\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


BUILD = """
import sys
from pybind11 import setup_helpers
sys.platform = "darwin"
sys.argv = ["setup.py", "--version"]
exec(open("setup.py").read())
"""


def test_building() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: megatron-kaiyuan runs on Linux only, and this is darwin\n"


@pytest.fixture
def darwin(tmp_path: Path) -> dict[str, str]:
    """An environment in which `uname` says so."""
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\necho Darwin\n")
    uname.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KAIYUAN_VENV": str(tmp_path / "venv")}


@pytest.mark.parametrize("name", ["torchrun.sh", "train.sh", "mpirun.sh", "spark_submit.sh", "acceptance.sh"])
def test_launch_scripts(name: str, darwin: dict[str, str]) -> None:
    command: list[str | Path] = ["bash", ROOT / "launch" / name, "--help"]
    done = subprocess.run(command, env=darwin, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the launch scripts need Linux and bash 4.4 or newer, and this is Darwin with")
    assert done.stderr.count("\n") == 1


def test_setting_up(darwin: dict[str, str], tmp_path: Path) -> None:
    command: list[str | Path] = ["bash", "-c", f"source {ROOT}/launch/setup_env.sh"]
    done = subprocess.run(command, env=darwin, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "venv").exists()
    assert done.stderr == "error: set-up: this project runs on Linux only, and this is Darwin\n"


@pytest.mark.parametrize(
    ("version", "fits"),
    [("3.2.57(1)-release", False), ("4.3.30", False), ("4.4.0", True), ("5.2.15(1)-release", True), ("10.0.0", True)],
)
def test_old_bash(version: str, fits: bool) -> None:
    """As macOS and old systems have: they know no `${name@Q}`, or no associative arrays."""
    code = f"BASH_VERSION={version.replace('(', '-').replace(')', '')}; source {ROOT}/launch/common.sh && echo went on"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if fits else 2)
    assert done.stderr.count("\n") == (0 if fits else 1) and ("went on" in done.stdout) == fits
