"""launch/setup_env.sh where shells, interpreters, compilers and folders are not as on the author's machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes.fake_python import FakePython
from tests.helpers.processes.launched import ROOT

CHECK = ROOT / "launch" / "check_env.py"


@pytest.fixture
def python(tmp_path: Path) -> FakePython:
    return FakePython(tmp_path)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a set-up ended with."""
    assert done.returncode != 0, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: set-up: ")
    return line


SHELLS = {"bash": ["bash", "-eu"], "zsh": ["zsh", "-f", "-eu"], "sh": ["sh", "-eu"]}


@pytest.mark.parametrize("name", SHELLS)
def test_shells(name: str, python: FakePython, tmp_path: Path) -> None:
    """Every shell gets the environment that was asked for, once on PATH; a second time it is reused."""
    if not shutil.which(name):
        pytest.skip(f"there is no {name} here")
    # sh does not know where the file is that it reads.
    cwd = ROOT if name == "sh" else tmp_path / "elsewhere" / "below"
    cwd.mkdir(parents=True, exist_ok=True)
    again = f". '{ROOT}/launch/setup_env.sh'; echo \"$VIRTUAL_ENV $PATH\""
    done = python.source("/a venv", shell=SHELLS[name], cwd=cwd, then=again)
    assert done.returncode == 0, done.stderr
    *_, reused, line = done.stdout.splitlines()
    assert reused == f"set-up: reused {tmp_path}/a venv"
    assert line == f"{tmp_path}/a venv {tmp_path}/a venv/bin:{os.environ['PATH']}"
    assert not list((tmp_path / "elsewhere").glob("**/.venv*"))


def test_sh_elsewhere_is_refused(python: FakePython, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "below"
    elsewhere.mkdir(parents=True)
    assert "in the project's folder" in refusal(python.source("/v", shell=["sh"], cwd=elsewhere, then="exit $?"))
    assert not list((tmp_path / "elsewhere").glob("**/.venv*")) and not python.calls()


def test_without_being_sourced_and_with_other_words(python: FakePython, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHON": str(python.program), "KAIYUAN_VENV": str(tmp_path / "v")}
    command: list[str | Path] = ["bash", ROOT / "launch" / "make_env.sh"]
    done = subprocess.run([*command, "--dev"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "set-up: ready" in done.stdout, done.stderr
    assert "requirements-dev.txt" in python.installed()[0]
    assert "'--test'" in refusal(subprocess.run([*command, "--test"], env=environ, capture_output=True, text=True))


def test_environment_whose_interpreter_is_gone(python: FakePython, tmp_path: Path) -> None:
    """Ours is made again, and kept beside; no other one is touched."""
    assert python.source("/v").returncode == 0
    (tmp_path / "v" / "mine").write_text("kept")
    interpreter = tmp_path / "v" / "bin" / "python"
    interpreter.unlink()
    interpreter.symlink_to("/nowhere/python3.11")
    done = python.source("/v")
    assert done.returncode == 0 and "is gone" in done.stdout, done.stderr
    (moved,) = tmp_path.glob("v.without-interpreter-*")
    assert (moved / "mine").read_text() == "kept" and interpreter.is_file()

    interpreter.unlink()
    interpreter.symlink_to("/nowhere/python3.11")
    (tmp_path / "v" / "kaiyuan.made").unlink()
    assert "/nowhere/python3.11" in refusal(python.source("/v"))
    assert interpreter.is_symlink() and len(list(tmp_path.glob("v*"))) == 3  # with the lock


def test_folder_of_the_users_is_refused(python: FakePython, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "letter").write_text("mine")
    assert "is not empty" in refusal(python.source("/v"))
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["letter"]


def test_another_interpreter_is_named(python: FakePython, tmp_path: Path) -> None:
    assert python.source("/v").returncode == 0
    (tmp_path / "asked" / "version").write_text("3.13.0 of /opt/newer\n")
    line = refusal(python.source("/v"))
    assert "3.11.7 of /opt/python" in line and "3.13.0 of /opt/newer" in line and "KAIYUAN_VENV" in line
    # Not asked for: the environment's own will do.
    assert python.source("/v", PYTHON="").returncode == 0
    assert "not a Python 3.11" in refusal(python.source("/v", PYTHON="/nowhere/python"))


def test_missing_package_is_installed_again(python: FakePython, tmp_path: Path) -> None:
    assert python.source("/v").returncode == 0
    (tmp_path / "sound").unlink()
    done = python.source("/v")
    assert done.returncode == 0 and "set-up: numpy is missing" in done.stdout.splitlines()
    assert len(python.installed()) == 2


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "nosuchcompiler -O2"])
def test_compiler_that_is_not_there(compiler: str, python: FakePython) -> None:
    assert f"CXX={compiler}" in refusal(python.source("/v", CXX=compiler))
    assert not python.installed()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may read and write, with a space in its name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "all users"
        folder.mkdir()
        for path in (Path(name), folder):
            path.chmod(0o777)
        yield folder


def test_sources_that_cannot_be_written(open_folder: Path) -> None:
    """An ordinary user names a place for the environment, and gets a copy of the project there."""
    tree = open_folder / "tree"
    for name in ("csrc", "data_tools", "docs", "launch", "megatron_kaiyuan"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in (*ROOT.glob("requirements*.txt"), *(ROOT / name for name in ("setup.py", "pyproject.toml", "LICENSE"))):
        shutil.copy(path, tree)
    subprocess.run(["chmod", "-R", "a-w,a+rX", tree], check=True)
    python = FakePython(open_folder / "own")
    subprocess.run(["chmod", "-R", "a+rwX", python.folder], check=True)
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    shell = [*ordinary, "bash", "-eu"]

    assert "set KAIYUAN_VENV" in refusal(python.source("", root=tree, shell=shell, KAIYUAN_VENV=""))
    before = sorted(tree.rglob("*"))
    done = python.source("/v", root=tree, shell=shell)
    assert done.returncode == 0, done.stderr
    assert any("--no-deps /tmp/" in line and " -e " not in line for line in python.calls())
    assert "set-up: reused" in python.source("/v", root=tree, shell=shell).stdout
    assert sorted(tree.rglob("*")) == before
    # What is installed is a copy: other sources are another project.
    module = tree / "data_tools" / "__init__.py"
    module.chmod(0o644)
    module.write_text("")
    assert "set-up: ready" in python.source("/v", root=tree, shell=shell).stdout


def check(*files: Path, broken: bool = False, path: Path | None = None) -> tuple[int, list[str]]:
    environ = {**os.environ, "PYTHONPATH": str(path or "")}
    command: list[str | Path] = [sys.executable, CHECK, *(["--broken"] if broken else []), *files]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd="/")
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_what_is_wrong_in_an_environment(tmp_path: Path) -> None:
    """This one is as its files say; missing, other and gone packages are named."""
    assert check(ROOT / "requirements.txt") == (0, [])
    for name, files in (("half", ["half.py"]), ("whole", ["whole/__init__.py"])):
        record = tmp_path / "site" / f"{name}-1.0.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (record / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{record.name}/RECORD"]))
    (tmp_path / "site" / "whole").mkdir()
    wanted = tmp_path / "wanted.txt"
    lines = ["half==1.0", "whole==1.0", "whole==2.0  # why", "nosuch==1", 'other==1; platform_machine == "vax"']
    wanted.write_text("\n".join(["# of a test", "--index-url x", *lines]))
    gone = "half is installed, and its files are gone"
    expected = [gone, "whole is 1.0, not 2.0", "nosuch is missing"]
    assert check(wanted, path=tmp_path / "site") == (1, expected)
    assert check(wanted, path=tmp_path / "site", broken=True) == (1, ["half==1.0"])
