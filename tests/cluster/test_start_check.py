"""Who is missing, and who is about to run something else: real processes, a real store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.cluster.rank_list import ranks_in_words

HOST = socket.gethostname()
# Time-out of jobs that miss a rank, and what a busy machine may take on top of any.
SECONDS, SLACK = 3, 60
JOBS: dict[str, dict[str, Any]] = {
    "all agree": {"ranks": 3},
    "one differs": {"ranks": 3, "facts": {"1": {"code": "other"}}},
    "one knows less": {"ranks": 2, "facts": {"1": {}}},
    "one is missing": {"ranks": 3, "absent": [1], "seconds": SECONDS},
    "rank 0 is missing, the store is not": {"ranks": 4, "absent": [0, 3], "agent": True, "seconds": SECONDS},
    "rank 0 and its store are missing": {"ranks": 2, "absent": [0], "seconds": SECONDS},
}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[dict[str, Any]]]:
    """What every rank came to, for each job; and for one whose port is taken."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        jobs = {**JOBS, "port is taken": {"ranks": 2, "absent": [1], "port": taken.getsockname()[1]}}
        script = Path(__file__).with_name("roll_call_job.py")
        command: list[str | Path] = [sys.executable, script, json.dumps(list(jobs.values()))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ})
    assert done.returncode == 0, done.stderr
    # torch warns of a rank 0 that it cannot reach, but of nothing else.
    assert "waitForInput" not in done.stderr and done.stderr.count("Traceback") == 0, done.stderr
    return dict(zip(jobs, json.loads(done.stdout), strict=True))


def only_line(said: list[dict[str, Any]], kind: str) -> str:
    """The one message that all ranks hold; no error has more than a line."""
    assert [one["error"] for one in said] == [kind] * len(said)
    (message,) = {one["message"] for one in said}
    assert "\n" not in message
    return message


def test_all_agree(answers: dict[str, list[dict[str, Any]]]) -> None:
    said = answers["all agree"]
    assert [one["error"] for one in said] == [None] * 3
    assert max(one["seconds"] for one in said) < SLACK


def test_difference_is_named_with_ranks_and_both_values(answers: dict[str, list[dict[str, Any]]]) -> None:
    message = only_line(answers["one differs"], "UserError")
    assert f"code is other on rank 1 ({HOST}), same on ranks 0, 2 ({HOST});" in message


def test_fact_that_a_rank_does_not_know(answers: dict[str, list[dict[str, Any]]]) -> None:
    message = only_line(answers["one knows less"], "UserError")
    assert "code is same on rank 0" in message and "not known on rank 1" in message


@pytest.mark.parametrize(
    ("job", "named"),
    [("one is missing", "rank 1 of 3"), ("rank 0 is missing, the store is not", "ranks 0, 3 of 4")],
)
def test_missing_ranks_are_named_in_time(job: str, named: str, answers: dict[str, list[dict[str, Any]]]) -> None:
    said = answers[job]
    assert only_line(said, "RankMissing").startswith(f"{named} did not come within 3 seconds")
    assert sum(one["speaker"] for one in said) == 1
    assert all(SECONDS <= one["seconds"] < SECONDS + SLACK for one in said)


def test_unreachable_rank_0(answers: dict[str, list[dict[str, Any]]]) -> None:
    (said,) = answers["rank 0 and its store are missing"]
    message = only_line([said], "RankMissing")
    assert f"rank 1 on {HOST} did not reach rank 0 at 127.0.0.1:" in message and said["speaker"]
    assert SECONDS <= said["seconds"] < SECONDS + SLACK


def test_port_that_is_taken(answers: dict[str, list[dict[str, Any]]]) -> None:
    message = only_line(answers["port is taken"], "UserError")
    assert "cannot listen at port" in message and "MASTER_PORT" in message


@pytest.mark.parametrize(
    ("ranks", "words"), [([3], "rank 3"), ([0, 2, 3, 4], "ranks 0, 2-4"), ([0, 1, 7, 8], "ranks 0-1, 7-8")]
)
def test_ranks_in_words(ranks: list[int], words: str) -> None:
    assert ranks_in_words(ranks) == words
