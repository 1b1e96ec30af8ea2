"""Stages with real shells and files: done once, done again when something before them changed, failures that stop."""

from __future__ import annotations

import subprocess
from pathlib import Path

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
