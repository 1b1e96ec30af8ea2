"""Damaged JSON lines: each line is a row or a bad row, as the standard library parses it, and nothing stops."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import Rows, line_rows
from tests.helpers.files.mutations import mutate

LINES = [
    '{"text": "plain", "score": 1}',
    '{"text": "中文 🙂 \\u00e9 \\ud83d\\ude42", "score": -0.5e-3, "more": [1, {"a": null}]}',
    "",
    '{"score": 2, "text": "\\"quoted\\" \\\\ \\n"}',
    '{"text": "", "score": 12345678901234567890}',
]


def expected(line: bytes) -> str | None:
    """The text of a sound row."""
    try:
        row = json.loads(line)
        row["text"].encode()
        score = row.get("score")
        if score is None or score != score:
            return row["text"]  # a missing score
        # Within what a double holds, and neither a boolean nor infinite.
        return row["text"] if type(score) in (int, float) and abs(score) < float("inf") else None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def read(path: Path, cuts: list[int]) -> list[Rows]:
    file = find_inputs([path])[0]
    settings = Settings(Path(), ("text",), ("score",))
    bounds = [0, *cuts, file.size]
    tasks = [Task(file, start, stop, "") for start, stop in pairwise(bounds)]
    return [rows for task in tasks for rows in line_rows(task, settings)]


@pytest.mark.parametrize("rounds", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_lines(tmp_path: Path, rounds: int) -> None:
    path, whole = tmp_path / "in.jsonl", "\n".join(LINES).encode() + b"\n"
    damaged = 0
    for seed in range(rounds):
        raw = mutate(whole, seed)
        path.write_bytes(raw)
        # Also where a line is cut in two tasks, it is read once and whole.
        found = read(path, [len(raw) // 3, len(raw) // 2])
        lines = [line for line in raw.split(b"\n") if line and not line.isspace()]
        texts = [text for line in lines if (text := expected(line)) is not None]
        assert [text for rows in found for text in rows.texts["text"]] == texts, seed
        assert sum(len(rows.bad) for rows in found) == len(lines) - len(texts), seed
        damaged += len(texts) < 4
    assert damaged > rounds / 4
