"""Stages with real shells and files: done once, done again when something before them changed, failures that stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

STAGES = Path(__file__).parents[2] / "launch" / "stages.sh"

SCRIPT = """
set -euo pipefail
RUN=run RECIPES=recipes
source {stages}
second() {{ cat run/first >run/second; echo warning >&2; echo "second: $(<recipes/second.yaml)"; }}
stage first run/first cp input run/first
stage second run/second second recipes/second.yaml
stage third run/third cp run/second run/third
show_table
"""


def _write(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "second.yaml").write_text("fast\n")
    (folder / "input").write_text("text\n")


def _run(folder: Path, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", script.format(stages=STAGES)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)


def _reused(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [line.split()[1].rstrip(":") for line in result.stdout.splitlines() if ": reused " in line]


def test_second_run_reuses_everything(tmp_path: Path) -> None:
    _write(tmp_path)
    first = _run(tmp_path)
    assert _reused(first) == []
    assert _reused(_run(tmp_path)) == ["first", "second", "third"]
    assert (tmp_path / "run" / "logs" / "second.log").read_text() == "warning\nsecond: fast\n"


def test_figure_is_the_last_line_of_standard_output(tmp_path: Path) -> None:
    _write(tmp_path)
    row = next(line for line in _run(tmp_path).stdout.splitlines() if line.startswith("second "))
    assert row.split(maxsplit=3)[2:] == ["run/second", "second: fast"]


def test_changed_recipe_and_lost_artefact_are_done_again_with_what_follows(tmp_path: Path) -> None:
    _write(tmp_path)
    _run(tmp_path)
    (tmp_path / "recipes" / "second.yaml").write_text("slow\n")
    assert _reused(_run(tmp_path)) == ["first"]
    (tmp_path / "run" / "first").unlink()
    assert _reused(_run(tmp_path)) == []


def test_changed_command_is_done_again(tmp_path: Path) -> None:
    _write(tmp_path)
    _run(tmp_path)
    assert _reused(_run(tmp_path, SCRIPT.replace("cp run/second run/third", "cp run/first run/third"))) == [
        "first",
        "second",
    ]


def test_failure_stops_and_later_stages_are_not_taken_for_done(tmp_path: Path) -> None:
    _write(tmp_path)
    _run(tmp_path)
    (tmp_path / "recipes" / "second.yaml").unlink()
    failed = _run(tmp_path, SCRIPT.replace('echo "second', 'false || return 3; echo "second'))
    assert failed.returncode == 3
    assert "stage second failed (exit code 3)" in failed.stderr
    assert failed.stdout.endswith("warning\n")
    assert "== third" not in failed.stdout
    (tmp_path / "recipes" / "second.yaml").write_text("fast\n")
    assert _reused(_run(tmp_path)) == ["first"]


def test_missing_artefact_is_a_failure(tmp_path: Path) -> None:
    _write(tmp_path)
    failed = _run(tmp_path, SCRIPT.replace("cp input run/first", "true"))
    assert failed.returncode == 1
    assert "no run/first was written" in failed.stdout


# A stage that counts, and saves half a second after it was asked to end; the command of its second stage never begins.
STOPPABLE = """
set -euo pipefail
RUN=run RECIPES=recipes
source {stages}
count() {{
    echo "continues: ${{continues:-no}}"
    python3 recipes/count.py
    echo never >run/never
}}
stage first run/first cp input run/first
stage count run/count count
"""
COUNT = """
import pathlib, signal, sys, time
count = pathlib.Path("run/count")
def save(number, frame):
    time.sleep(0.5)
    print("saved", flush=True)
    pathlib.Path("run/saved").write_text(signal.Signals(number).name)
    sys.exit(128 + number)
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), save)
start = int(count.read_text()) if count.exists() else 0
for number in range(start + 1, 1000):
    count.write_text(str(number))
    time.sleep(0.05)
"""


@contextlib.contextmanager
def _at_work(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The script as a terminal starts it: the leader of a process group, at work on its second stage."""
    command = ["bash", "-c", STOPPABLE.format(stages=STAGES)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes) as script:
        try:
            _wait_until(lambda: (folder / "run" / "count").exists())
            yield script
        finally:
            script.kill()


def _wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _at_work_in(folder: Path) -> list[str]:
    """Commands of processes whose working directory is the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_lets_the_stage_save_and_the_same_command_continues(
    send: Callable[[int, int], None], number: signal.Signals, tmp_path: Path
) -> None:
    _write(tmp_path)
    (tmp_path / "recipes" / "count.py").write_text(COUNT)
    with _at_work(tmp_path) as script:
        send(script.pid, number)
        output, _ = script.communicate(timeout=60)
        # At once: nothing is left when the script has ended.
        assert _at_work_in(tmp_path) == []
    assert script.returncode == 128 + number
    assert "continues: no" in output
    assert output.endswith("saved\nrun: stopped in stage count; the same command continues\n")
    # Once, by the signal itself, and nothing of the stage after that.
    assert output.count("saved") == 1 and (tmp_path / "run" / "saved").read_text() == number.name
    assert not (tmp_path / "run" / "never").exists()
    reached = int((tmp_path / "run" / "count").read_text())

    (tmp_path / "recipes" / "count.py").write_text(COUNT.replace("1000", "start + 3"))
    done = _run(tmp_path, STOPPABLE)
    assert done.returncode == 0 and "== first: reused" in done.stdout and "continues: yes" in done.stdout
    assert int((tmp_path / "run" / "count").read_text()) == reached + 2
    assert _reused(_run(tmp_path, STOPPABLE)) == ["first", "count"]


def test_what_a_changed_stage_had_begun_is_not_continued(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "recipes" / "count.py").write_text(COUNT)
    with _at_work(tmp_path) as script:
        script.terminate()
        script.communicate(timeout=60)
    (tmp_path / "input").write_text("other text\n")
    (tmp_path / "run" / "first").unlink()
    (tmp_path / "recipes" / "count.py").write_text(COUNT.replace("1000", "start + 3"))
    done = _run(tmp_path, STOPPABLE)
    assert done.returncode == 0 and "== first: reused" not in done.stdout and "continues: no" in done.stdout


def test_a_killed_script_takes_its_stage_along(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "recipes" / "count.py").write_text(COUNT)
    with _at_work(tmp_path) as script:
        script.kill()
        script.wait()
        _wait_until(lambda: not _at_work_in(tmp_path))
    assert (tmp_path / "run" / "saved").read_text() == "SIGTERM"
