"""The one rule after an end, for every launcher: stopped, a mistake, or worth another start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan import exit_codes
from megatron_kaiyuan.checkpoint.layout import PREEMPTED, point_latest
from megatron_kaiyuan.cluster.bad_nodes import BAD_NODES, read_bad_nodes, write_bad_nodes
from megatron_kaiyuan.cluster.first_failure import FIRST_FAILURE, leave
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.train.ending import AfterEnd, Look, judge, look

ROOT = Path(__file__).parents[2]
CALM = Look(10, "", "", "")
SAVED = Look(12, "new", "", "")


@pytest.mark.parametrize(
    ("before", "now", "status", "signal", "restarts", "most", "expected"),
    [
        # Trained to the end.
        (CALM, Look(20, "", "", ""), 0, 0, 0, 3, AfterEnd("end", 0, 0)),
        # A new marker: never 0, on no node, whatever the launcher has made of it.
        (CALM, SAVED, 0, 0, 0, 3, AfterEnd("stopped", 143, 0)),
        (CALM, SAVED, 1, 0, 0, 3, AfterEnd("stopped", 143, 0)),
        (CALM, SAVED, 137, 0, 0, 3, AfterEnd("stopped", 143, 0)),
        (CALM, SAVED, 138, 0, 0, 3, AfterEnd("stopped", 138, 0)),
        (CALM, SAVED, 143, 2, 0, 0, AfterEnd("stopped", 130, 0)),
        # An earlier stop's marker is not an answer of this start.
        (Look(10, "old", "", ""), Look(10, "old", "", ""), 0, 0, 0, 3, AfterEnd("end", 0, 0)),
        (Look(10, "old", "", ""), Look(12, "new", "", ""), 0, 0, 0, 3, AfterEnd("stopped", 143, 0)),
        (Look(10, "old", "", ""), Look(10, "old", "", ""), 137, 0, 0, 1, AfterEnd("again", 137, 1)),
        # Asked to stop before it could save.
        (CALM, CALM, 143, 15, 0, 3, AfterEnd("end", 143, 0)),
        (CALM, CALM, 2, 0, 0, 3, AfterEnd("end", 2, 0)),
        # A mistake of one rank, which the launcher hides: other ranks lost it, or msrun reports no code.
        (CALM, Look(10, "", "", "new"), 143, 0, 0, 3, AfterEnd("end", 2, 0)),
        (Look(10, "", "", "old"), Look(10, "", "", "old"), 1, 0, 0, 3, AfterEnd("again", 1, 1)),
        # A failure: worth another start while checkpoints are won, and `most` times without.
        (CALM, CALM, 137, 0, 0, 0, AfterEnd("end", 137, 0)),
        (CALM, CALM, 137, 0, 2, 3, AfterEnd("again", 137, 3)),
        (CALM, CALM, 137, 0, 3, 3, AfterEnd("end", 137, 3)),
        (CALM, Look(12, "", "", ""), 1, 0, 3, 3, AfterEnd("again", 1, 1)),
        (CALM, CALM, exit_codes.BAD_NODE, 0, 0, 3, AfterEnd("again", exit_codes.BAD_NODE, 1)),
        # The same when a launcher has killed the rank that hung, or hides the code; not for a node of an earlier start.
        (CALM, Look(10, "", "new", ""), 137, 0, 0, 3, AfterEnd("again", exit_codes.BAD_NODE, 1)),
        (CALM, Look(10, "", "new", ""), 1, 0, 0, 0, AfterEnd("end", exit_codes.BAD_NODE, 0)),
        (Look(10, "", "old", ""), Look(10, "", "old", ""), 1, 0, 0, 0, AfterEnd("end", 1, 0)),
        (CALM, Look(20, "", "new", ""), 0, 0, 0, 3, AfterEnd("end", 0, 0)),
    ],
)
def test_the_rule(
    before: Look, now: Look, status: int, signal: int, restarts: int, most: int, expected: AfterEnd
) -> None:
    assert judge(before, now, status, signal, restarts, most) == expected


@pytest.mark.parametrize("number", exit_codes.CRASH_SIGNALS)
def test_a_rank_that_crashed_is_worth_another_start(number: int) -> None:
    code = exit_codes.of_signal(number)
    assert judge(CALM, CALM, code, 0, 0, 3) == AfterEnd("again", code, 1)
    assert judge(CALM, Look(12, "", "", ""), code, 0, 3, 3) == AfterEnd("again", code, 1)
    assert judge(CALM, CALM, code, 0, 3, 3) == AfterEnd("end", code, 3)


@given(st.integers(0, 255), st.integers(0, 15), st.integers(0, 5), st.integers(0, 5))
def test_an_unfinished_run_never_ends_with_0(status: int, signal: int, restarts: int, most: int) -> None:
    assert judge(CALM, SAVED, status, signal, restarts, most).code != 0


def _asked(*words: object) -> str:
    program = [sys.executable, "-m", "megatron_kaiyuan.train.ending", *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_as_scripts_ask_it(tmp_path: Path) -> None:
    """Under Slurm the count outlives the job's start: in the run folder."""
    before = _asked("look", tmp_path)
    assert before == "-1::::" and look(tmp_path / "nowhere") == Look(-1, "", "", "")
    write_bad_nodes(tmp_path, ["node7", "node7", "node9"], "rank 3 does not answer")
    assert _asked("judge", tmp_path, before, 137, 0, "kept", 2) == "again 3 1 -1 node7,node9"
    before = _asked("look", tmp_path)
    assert _asked("judge", tmp_path, before, 137, 0, "kept", 2) == "again 137 2 -1"
    assert _asked("judge", tmp_path, before, 137, 0, "kept", 2) == "end 137 2 -1"
    # That was the end: whoever starts the job again begins to count again.
    assert not (tmp_path / "restarts.json").exists()
    point_latest(tmp_path, 8)
    write_json(tmp_path / PREEMPTED, {"step": 8, "time": 1.0})
    assert _asked("judge", tmp_path, before, 0, 0, 0, 0) == "stopped 143 0 8"


def test_the_first_rank_that_failed(tmp_path: Path) -> None:
    """Its code goes before the launcher's; one that is left of an earlier start, or that no one can read, does not."""
    before = _asked("look", tmp_path)
    leave(tmp_path, 134)
    leave(tmp_path, 1)
    assert _asked("judge", tmp_path, before, 143, 0, 0, 0) == "end 134 0 -1"
    assert _asked("judge", tmp_path, before, 0, 0, 0, 0) == "end 0 0 -1"
    assert _asked("judge", tmp_path, _asked("look", tmp_path), 143, 0, 0, 0) == "end 143 0 -1"
    (tmp_path / FIRST_FAILURE).write_text('{"code": 0}')
    assert _asked("judge", tmp_path, before, 143, 0, 0, 0) == "end 143 0 -1"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"hosts": ["a; reboot"], "why": "", "time": 1.0}', '{"hosts": "a", "why": "", "time": 1.0}', "\udcff"],
)
def test_bad_nodes_of_another_hand_are_not_used(content: str, tmp_path: Path) -> None:
    (tmp_path / BAD_NODES).write_text(content, errors="surrogateescape")
    assert read_bad_nodes(tmp_path) is None


def test_codes_are_in_one_place() -> None:
    """The scripts and the page for users say the same."""
    shell = (ROOT / "launch" / "common.sh").read_text()
    named = dict(re.findall(r"\bexit_(\w+)=(\d+)", shell))
    assert {name: int(code) for name, code in named.items()} == {"mistake": 2}
    for name, code in named.items():
        assert getattr(exit_codes, name.upper()) == int(code)
    page = (ROOT / "docs" / "launch.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", page[page.index("| exit code |") :], re.MULTILINE)
    told = {int(code) for row in rows for code in row.split(",")}
    codes = {exit_codes.FINISHED, exit_codes.FAILED, exit_codes.MISTAKE, exit_codes.BAD_NODE, exit_codes.KILLED}
    signals = (*exit_codes.STOP_SIGNALS, *exit_codes.CRASH_SIGNALS)
    assert told == codes | {exit_codes.of_signal(number) for number in signals}
