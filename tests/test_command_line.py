"""What every command shares, with a real process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

APP = """
import os
import sys
from pathlib import Path
from megatron_kaiyuan.command_line import SeveralValuesCommand, make_app, optional_value, run_app
from megatron_kaiyuan.errors import UserError
import typer
from typing import Annotated

app = make_app("Test.")

@app.command(cls=SeveralValuesCommand)
def show(name: Annotated[list[str], typer.Option()], flag: bool = False) -> None:
    print(name, flag)

@app.command(cls=optional_value("--write", ("all", "part")))
def maybe(words: Annotated[list[str], typer.Argument()], write: Annotated[str | None, typer.Option()] = None) -> None:
    print(words, write)

@app.command()
def fail(how: str) -> None:
    if how == "mistake":
        raise UserError("file.yaml: field\\n is wrong")
    if how == "file":
        Path("/nowhere/at/all").read_text()
    if how == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")
    if how == "interrupt":
        raise KeyboardInterrupt
    for _ in range(100000):
        print("many lines")

@app.command()
def work(path: Path) -> None:
    import time

    time.sleep(0.2)
    for _ in range(100):
        print("before", flush=True)
        print("before", file=sys.stderr, flush=True)
    path.write_text("whole")
    print("after")

run_app(app)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("how", "code", "error"),
    [
        ("mistake", 2, "error: file.yaml: field is wrong\n"),
        ("file", 2, "error: /nowhere/at/all: No such file or directory\n"),
        ("interrupt", 130, ""),
        ("pipe", 2, "error: [Errno 32] Broken pipe\n"),
    ],
)
def test_one_line_and_an_exit_code(script: Path, how: str, code: int, error: str) -> None:
    done = run(script, "fail", how)
    assert (done.returncode, done.stderr) == (code, error)


def test_a_reader_that_goes_away(script: Path) -> None:
    line = f"{sys.executable} {script} fail print | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("many lines\n141\n", "")


def test_a_lost_reader_or_a_full_disk_ends_no_command_before_its_work(script: Path, tmp_path: Path) -> None:
    """Work between two prints; the exit code still reports what became of standard output."""
    work = ["work", str(tmp_path / "artefact")]
    line = f"{sys.executable} {script} {' '.join(work)} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout, (tmp_path / "artefact").read_text()) == ("141\n", "whole")
    (tmp_path / "artefact").unlink()
    command: list[str | Path] = [sys.executable, script, *work]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, (tmp_path / "artefact").read_text()) == (2, "whole")
    assert (
        done.stderr.splitlines()[-1]
        == "error: standard output: No space left on device; the command itself has ended well"
    )
    (tmp_path / "artefact").unlink()
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
    assert (done.returncode, (tmp_path / "artefact").read_text()) == (0, "whole")


def test_options_take_several_values(script: Path) -> None:
    done = run(script, "show", "--name", "a", "b", "--flag", "--name", "c")
    assert done.stdout == "['a', 'b', 'c'] True\n", done.stderr
    assert run(script, "show", "--unknown").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["a"], "['a'] None"),
        (["a", "--write"], "['a'] all"),
        (["--write", "a"], "['a'] all"),
        (["--write", "part", "a"], "['a'] part"),
        (["a", "--write=other"], "['a'] other"),
    ],
)
def test_an_option_may_stand_alone(script: Path, arguments: list[str], printed: str) -> None:
    done = run(script, "maybe", *arguments)
    assert done.stdout == f"{printed}\n", done.stderr


def commands_of(app: typer.Typer) -> Iterator[list[str]]:
    """The words of every command; a group without a name adds its commands to those of its parent."""
    for command in app.registered_commands:
        yield [command.name or command.callback.__name__]
    for group in app.registered_groups:
        for words in commands_of(group.typer_instance):
            yield [group.name, *words] if isinstance(group.name, str) else words


@pytest.mark.parametrize("module", ["megatron_kaiyuan.cli", "data_tools.cli"])
def test_help_is_there_for_every_command_with_an_example(module: str) -> None:
    top = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    assert top.returncode == 0
    import importlib

    app = importlib.import_module(module).app
    commands = list(commands_of(app))
    assert len(commands) >= 5
    for command in commands:
        done = subprocess.run([sys.executable, "-m", module, *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "kaiyuan" in done.stdout, command
        assert "Example" in done.stdout or "One process:" in done.stdout, command


@pytest.mark.parametrize("module", ["megatron_kaiyuan.cli", "data_tools.cli"])
def test_help_imports_nothing_that_takes_long(module: str) -> None:
    code = f"""
import sys
from {module} import main
sys.argv = ["kaiyuan", "--help"]
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "numpy", "pydantic", "omegaconf", "yaml", "megatron.core", "transformers", "matplotlib", "psutil"}}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Usage" in done.stdout and done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr
