"""Planted damage: the share that was asked for, nested levels, and windows of a mixed corpus that are the levels."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.planted_noise import LEVELS, damage, write
from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.windows.cut import cut_windows
from data_tools.windows.options import WindowOptions
from megatron_kaiyuan.files import read_sealed_json


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_levels_differ_in_how_much_is_replaced_and_in_nothing_else(harvested: Path, tmp_path: Path) -> None:
    source = harvested / "math.train.jsonl"
    write([source], tmp_path, LEVELS, mixed=False, seed=1, most=5e4)
    clean = [row["text"] for row in rows(source)]
    levels = [rows(tmp_path / f"noise_{number}.jsonl") for number in range(5)]
    assert [row["text"] for row in levels[0]] == clean[: len(levels[0])]
    total = sum(not character.isspace() for row in levels[0] for character in row["text"])
    changed: list[set[tuple[int, int]]] = []
    for share, damaged in zip(LEVELS, levels, strict=True):
        places = set()
        for number, (row, text) in enumerate(zip(damaged, clean, strict=False)):
            assert row["quality"] == -share and len(row["text"]) == len(text)
            assert [c.isspace() for c in row["text"]] == [c.isspace() for c in text]
            places |= {(number, at) for at, (one, two) in enumerate(zip(text, row["text"], strict=True)) if one != two}
        # A letter is replaced by itself once in 26 times at most.
        assert share * 25 / 26 - 0.01 <= len(places) / total <= share + 0.01
        changed.append(places)
    assert all(fewer < more for fewer, more in pairwise(changed))
    assert damage("some text", 0.5, 1) == damage("some text", 0.5, 1) != damage("some text", 0.5, 2)


def test_windows_of_a_mixed_corpus_are_the_levels(harvested: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    sources = [harvested / "math.train.jsonl", harvested / "code.train.jsonl"]
    write(sources, tmp_path, LEVELS, mixed=True, seed=1, most=float("inf"))
    mixed = rows(tmp_path / "mixed.jsonl")
    whole = len(mixed) // 5 * 5  # as many of each level
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed[:whole]))
    settings = Settings(tokenizer_path, score_keys=("quality",))
    preprocess([tmp_path / "mixed.jsonl"], tmp_path / "mixed", settings, LocalEngine(1))
    windows = [f"{number}/5-{number + 1}/5" for number in range(5)]
    options = WindowOptions(["quality"], windows=windows, samples=None)
    cut_windows([f"mixed={tmp_path}/mixed_text_document"], options, tmp_path / "windows")
    found = read_sealed_json(tmp_path / "windows" / "windows.json", "windows")["windows"]
    ends = [(window["lowest"], window["highest"]) for window in found]
    assert ends == [pytest.approx((-level, -level)) for level in LEVELS]
    assert {window["documents"] for window in found} == {whole // 5}
