"""One set-up of logging: what is shown by level and rank, of this project and of libraries, here and in children."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from data_tools.cli import app as kaiyuan_data
from data_tools.engines.pool import Pool
from megatron_kaiyuan import logs
from megatron_kaiyuan.cli import app as kaiyuan
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.progress import Progress

LOG = logging.getLogger("megatron_kaiyuan.test")
LIBRARY = logging.getLogger("library")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(logs.VARIABLE, "info")
    yield
    logs.set_up("info")
    logs.set_rank(0)


def log_all() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        name = logging.getLevelName(level).lower()
        LOG.log(level, f"our {name}")
        LIBRARY.log(level, f"library's {name}")


@pytest.mark.parametrize(
    ("level", "rank", "expected"),
    [
        ("info", 0, ["our info", "warning: our warning", "warning: library's warning"]),
        ("info", 1, ["warning: our warning"]),
        ("warning", 0, ["warning: our warning", "warning: library's warning"]),
        ("error", 0, []),
        ("error", 1, []),
        ("debug", 0, ["our info", "library's info", "warning: our warning", "warning: library's warning"]),
        ("debug", 1, ["warning: our warning"]),
    ],
)
def test_levels(level: str, rank: int, expected: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(level)
    logs.set_up()
    logs.set_rank(rank)
    log_all()
    out, err = capfd.readouterr()
    first, *rest = err.splitlines()
    if level == "debug":
        assert first.startswith("debug: ") and first.endswith(f" rank {rank} megatron_kaiyuan.test: our debug")
    else:
        rest = [first, *rest]
    assert (out, rest) == ("", [*expected, "error: our error", "error: library's error"])


def test_warnings_of_libraries_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.set_up()
        warnings.warn("is\nold", FutureWarning, stacklevel=1)
        logs.set_rank(1)
        warnings.warn("is old", FutureWarning, stacklevel=1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: is old (FutureWarning, ") and __file__ in line


def test_no_level_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "loud")
    with pytest.raises(UserError, match="KAIYUAN_LOG_LEVEL=loud: is not a level; use debug, info, warning, error"):
        logs.set_up()
    command = [sys.executable, "-m", "data_tools", "tokenizer", "inspect", "a", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and done.stderr.startswith("error: KAIYUAN_LOG_LEVEL=")


def test_a_name_of_a_level_in_any_case(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(logs.VARIABLE, " ERROR ")
    logs.set_up()
    LOG.warning("not shown")
    assert capfd.readouterr().err == "" and logs.is_quiet()


def test_lines_keep_their_order_between_the_streams() -> None:
    program = (
        "import logging; from megatron_kaiyuan import logs; logs.set_up(); log = logging.getLogger('data_tools.x')\n"
        "for number in range(50): print('result', number); log.info('message %d', number)"
    )
    both = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert both.stdout.split() == [word for n in range(50) for word in ("result", str(n), "message", str(n))]


class Speaker:
    """Logs from the process of a pool."""

    def speak(self, number: int) -> str:
        LOG.info(f"from a worker {number}")
        LOG.debug(f"detail {number}")
        return os.environ[logs.VARIABLE]


@pytest.mark.parametrize(("level", "shown"), [("info", 1), ("error", 0), ("debug", 1)])
def test_workers_of_a_pool(level: str, shown: int, capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(level)
    with Pool(Speaker(), 2) as pool:
        assert dict(pool.run("speak", [(number,) for number in range(3)])) == dict.fromkeys(range(3), level)
    err = capfd.readouterr().err
    for number in range(3):
        assert err.count(f"from a worker {number}\n") == shown
        assert err.count(f"rank 0 megatron_kaiyuan.test: detail {number}\n") == (level == "debug")


def test_quiet_work_shows_no_progress(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_kaiyuan.progress._LINE_SECONDS", 0.0)
    for level, lines in (("info", 1), ("error", 0)):
        logs.set_up(level)
        with Progress("work", 2) as progress:
            progress.advance()
        assert capfd.readouterr().err.count("work: 1 of 2 tasks\n") == lines


def test_lines_past_a_lock_that_is_held(capfd: pytest.CaptureFixture[str]) -> None:
    with logs._handler.lock:  # type: ignore[union-attr]
        logs.log_at_once(logging.ERROR, "hangs")
        logs.log_at_once(logging.DEBUG, "not shown")
    assert capfd.readouterr().err == "error: hangs\n"


def commands(group: typer.core.TyperGroup, name: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")  # type: ignore[arg-type]
        else:
            yield f"{name} {word}", command  # type: ignore[misc]


def test_every_command_has_both_options() -> None:
    found = [
        (name, {option for parameter in command.params for option in parameter.opts})
        for app, root in ((kaiyuan, "kaiyuan"), (kaiyuan_data, "kaiyuan-data"))
        for name, command in commands(typer.main.get_command(app), root)  # type: ignore[arg-type]
    ]
    assert len(found) > 30
    assert [name for name, options in found if not {"--verbose", "--quiet"} <= options] == []


def test_both_options_at_once() -> None:
    done = CliRunner().invoke(kaiyuan, ["config", "docs", "--verbose", "--quiet"])
    assert isinstance(done.exception, UserError) and "give one of them" in str(done.exception)


def test_quiet_prints_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(kaiyuan, ["config", "schema", "train", "--quiet"])
    assert done.exit_code == 0 and done.stdout.startswith("{") and os.environ[logs.VARIABLE] == "error"


# What becomes another program, and what calls a main function that is looked at itself.
ELSEWHERE = ("megatron_kaiyuan/cluster/parent.py", "data_tools/__main__.py")


def test_every_program_sets_logging_up() -> None:
    """Without it info lines are lost, and warnings lose their first word."""
    root = Path(__file__).parents[1]
    sources = [path for room in ("megatron_kaiyuan", "data_tools") for path in sorted((root / room).rglob("*.py"))]
    programs = {
        str(path.relative_to(root)): text
        for path in sources
        if 'if __name__ == "__main__":' in (text := path.read_text()) or path.name == "__main__.py"
    }
    assert len(programs) > 10 and programs.keys() >= set(ELSEWHERE)
    silent = [name for name, text in programs.items() if not re.search(r"logs\.set_up\(|\brun_app\(", text)]
    assert silent == sorted(ELSEWHERE, reverse=True)
