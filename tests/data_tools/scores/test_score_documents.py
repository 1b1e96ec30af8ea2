"""`kaiyuan-data score --input`: every document is kept or dropped with a reason, the same bytes on every engine."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.engines.local import LocalEngine
from data_tools.scores.documents import ScoreOptions, score_documents
from data_tools.steps.datasets import reading_settings
from data_tools.steps.folder import INPUTS
from megatron_kaiyuan.errors import UserError

WORDS = ["der", "Baum", "the", "tree", "grows", "langsam", "我们", "2024"]


def write_documents(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"text": " ".join(draw.choices(WORDS, k=draw.randrange(1, 30))), "n": number}
        if draw.random() < 0.9:
            row["edu"] = draw.choice([0.5, 1.0, 2.5, draw.random() * 3])
        rows.append(row)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def score(words: list[str], output: Path, task_bytes: int = 4000, **options: Any) -> list[str]:
    return score_documents(words, output, ScoreOptions(**options), reading_settings(), LocalEngine(1), task_bytes)


def read(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*.parquet") if path.name != INPUTS)
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_scores_come_beside_the_documents_and_filters_say_why(tmp_path: Path) -> None:
    rows = write_documents(tmp_path / "a.jsonl", 300, 1)
    lines = score(
        [str(tmp_path / "a.jsonl")],
        tmp_path / "out",
        scorers=["column=edu,name=half,scale=0.5"],
        filters=["half > 0.4 and n < 250", "not n == 7"],
    )
    kept, dropped = read(tmp_path / "out" / "documents"), read(tmp_path / "out" / "dropped")
    expected: dict[int, str | None] = {}
    for row in rows:
        half = row["edu"] * 0.5 if "edu" in row else None
        first = "half is missing: half > 0.4" if half is None else "not half > 0.4" if half <= 0.4 else None
        expected[row["n"]] = first or ("not n < 250" if row["n"] >= 250 else "n == 7" if row["n"] == 7 else None)
    assert {row["n"] for row in kept} == {n for n, reason in expected.items() if reason is None}
    assert {row["n"]: row["kaiyuan_dropped"] for row in dropped} == {
        n: reason for n, reason in expected.items() if reason
    }
    assert all(row["half"] == row["edu"] * 0.5 for row in kept)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["filters"] == ["half > 0.4 and n < 250", "not n == 7"]
    reasons = list(filter(None, expected.values()))
    assert manifest["datasets"][""]["dropped"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert len(lines) == 1 and f"; {reasons.count('not half > 0.4')} not half > 0.4" in lines[0]


def test_quantiles_are_of_the_whole_dataset_and_of_what_earlier_filters_leave(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 400, 1)
    write_documents(tmp_path / "b.jsonl", 100, 2)
    words = [f"{name}={tmp_path / name}.jsonl" for name in "ab"]
    filters = ["n >= 10", "edu_quantile > 0.75 or n == 11"]
    score(words, tmp_path / "out", quantiles=["edu"], filters=filters)
    for name, count in (("a", 390), ("b", 90)):
        kept, dropped = (read(tmp_path / "out" / place / name) for place in ("documents", "dropped"))
        every = [
            row
            for row in kept + dropped
            if row["kaiyuan_dropped" if "kaiyuan_dropped" in row else "n"] != "not n >= 10"
        ]
        assert len(every) == count
        scored = sorted((row for row in every if row["edu"] is not None), key=lambda row: row["edu_quantile"])
        assert [row["edu_quantile"] for row in scored] == [(i + 1) / len(scored) for i in range(len(scored))]
        assert np.all(np.diff([row["edu"] for row in scored]) >= 0)
        assert all(row["edu_quantile"] is None for row in every if row["edu"] is None)
        assert all((row["edu_quantile"] or 0) > 0.75 or row["n"] == 11 for row in kept)
        assert len(kept) - sum(row["n"] == 11 and (row["edu_quantile"] or 0) <= 0.75 for row in kept) == len(
            scored
        ) - int(0.75 * len(scored))
        assert {row["kaiyuan_dropped"] for row in dropped if row["n"] < 10} == {"not n >= 10"}


def test_what_was_scored_is_scored_again_without_what_was_dropped(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 200, 1)
    write_documents(tmp_path / "b.jsonl", 100, 2)
    score([f"{name}={tmp_path / name}.jsonl" for name in "ab"], tmp_path / "one", filters=["edu > 1"])
    score([str(tmp_path / "one")], tmp_path / "two", scorers=["column=edu,name=twice,scale=2"])
    for name in "ab":
        first, second = (read(tmp_path / place / "documents" / name) for place in ("one", "two"))
        assert [row["text"] for row in first] == [row["text"] for row in second]
        assert all(row["twice"] == 2 * row["edu"] > 2 for row in second)


def test_rules_classifiers_and_masks_of_real_kinds(tmp_path: Path, command: Any) -> None:
    draw = random.Random(1)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    for path, words in ((good, ["proof", "theorem", "lemma"]), (bad, ["buy", "cheap", "now"])):
        rows = [{"text": " ".join(draw.choices([*words, "the", "of"], k=40)) + " a@b.org"} for _ in range(60)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["scorer", "train", "--positives", good, "--negatives", bad, "--output", tmp_path / "edu.bin"]
    train += ["--buckets", 1000, "--dim", 4]
    pytest.importorskip("fasttext", reason="the extra [scores] trains classifiers")
    trained = command(*train)
    assert trained.returncode == 0 and "60 positives, 60 negatives" in trained.stdout, trained.stderr
    assert command(*train).returncode == 0  # the same again
    assert "made from something else" in command(*train, "--seed", 3).stderr
    line = ["score", "--input", f"good={good}", f"bad={bad}", "--output", tmp_path / "out", "--mask-personal-data"]
    line += ["--scorer", "rules", f"linear={tmp_path / 'edu.bin'},name=edu", "--filter", "edu > 0.5"]
    done = command(*line, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "score: good: 60 of 60 stay" in done.stdout and "score: bad: 0 of 60 stay" in done.stdout
    kept = read(tmp_path / "out" / "documents")
    assert all("a@b.org" not in row["text"] and row["masked_email"] == 1 for row in kept)
    assert all(row["rules_gopher"] == 0 and row["rules_reason"] for row in kept)  # shorter than 50 words
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [step[0] for step in manifest["steps"]] == ["mask personal data", "score", "filter"]


def test_a_field_that_first_comes_late_is_a_column(tmp_path: Path) -> None:
    rows = [{"text": "x" * 50}] * 100 + [{"text": "y" * 50, "late": 3}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = score([str(tmp_path / "a.jsonl")], tmp_path / "out", filters=["late > 2"], scorers=["column=late,name=l"])
    assert lines == ["documents: 1 of 101 stay (1.0%); 100 late is missing: late > 2"]
    (tmp_path / "b.jsonl").write_text('{"text": "z"}\n')
    with pytest.raises(UserError, match=r"dataset 'b' has no column 'late'; it has text$"):
        score([f"{name}={tmp_path / name}.jsonl" for name in "ab"], tmp_path / "two", filters=["late > 2"])


@pytest.mark.parametrize("first", ["empty", "without the field", "empty parquet"])
def test_a_column_that_only_later_files_have_is_a_column(first: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        if first == "empty parquet":
            pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / f"{number:02}.parquet")
        else:
            (folder / f"{number:02}.jsonl").write_text("" if first == "empty" else '{"text": "x"}\n')
    rows = write_documents(folder / "20.jsonl", 60, 3)
    scored = sorted(row["edu"] for row in rows if "edu" in row)
    lines = score(
        [str(folder)],
        tmp_path / "out",
        filters=["edu > 0.6"],
        quantiles=["edu"],
        scorers=["column=edu,name=twice,scale=2"],
    )
    stay = [score for score in scored if score > 0.6]
    assert lines[0].startswith(f"documents: {len(stay)} of {60 + 12 * (first == 'without the field')} stay")
    found = sorted((row["edu"], row["twice"]) for row in read(tmp_path / "out" / "documents"))
    assert found == [(score, 2 * score) for score in stay]


@pytest.mark.parametrize("do", [{"quantiles": ["x"]}, {"filters": ["x > 3"]}, {"scorers": ["column=x,name=y"]}])
def test_a_column_of_another_type_in_a_later_file_is_one_line_that_names_it(do: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "x": [1, 5]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"text": ["a", "b"], "x": [1.5, 5.5]}), tmp_path / "in" / "b.parquet")
    assert score([str(tmp_path / "in")], tmp_path / "both", **do)[0].startswith("documents: ")
    pq.write_table(pa.table({"text": ["a"], "x": ["s19"]}), tmp_path / "in" / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: .*column 'x' (is|holds) text"):
        score([str(tmp_path / "in")], tmp_path / "out", **do)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_quantiles_by_tokens_of_a_column(tmp_path: Path) -> None:
    draw = random.Random(6)
    rows = [{"text": "x", "edu": draw.random(), "tokens": draw.randrange(9)} for _ in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score([str(tmp_path / "a.jsonl")], tmp_path / "out", quantiles=["edu,by=tokens"])
    found = sorted(read(tmp_path / "out" / "documents"), key=lambda row: row["edu"])
    weights = np.maximum([row["tokens"] for row in found], 1)
    assert [row["edu_quantile"] for row in found] == list(np.cumsum(weights) / weights.sum())


def test_ties_are_drawn_by_the_seed_whatever_the_cut(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 300, 4)
    source = [str(tmp_path / "a.jsonl")]
    found = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        score(source, tmp_path / name, quantiles=["edu"], seed=seed)
        found[name] = {row["n"]: row["edu_quantile"] for row in read(tmp_path / name)}
    assert found["one"] == found["again"] != found["two"]


def test_mistakes_are_found_before_anything_is_written(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", 50, 1)
    source = [str(tmp_path / "a.jsonl")]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"filters": ["edo > 1"]}, r"the input has no column 'edo'; it has text, n, edu$"),
        ({"filters": ["edu > 'x'"]}, "column 'edu' holds numbers, compared with 'x'"),
        ({"scorers": ["column=edo"]}, "column 'edo' is not in the input"),
        ({"scorers": ["column=edu"]}, "column 'edu' is in the input already"),
        ({"quantiles": ["edo"]}, "the input has no column 'edo', it has"),
        ({"quantiles": ["text"]}, "column 'text' is text, not numbers"),
        ({"quantiles": ["edu,by=tokens"]}, "no column 'tokens'.* documents have no tokens"),
        ({"quantiles": ["edu", "edu,by=tokens"]}, "named twice"),
        ({"scorers": ["column=edu,name=x"], "max_bad_rows": -1}, "--max-bad-rows -1: must be between 0 and "),
        ({}, "nothing to do"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            score(source, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def start(tmp_path: Path, output: str, engine: str, workers: int, rank: int = 0, world: int = 1) -> Any:
    environ = dict(os.environ)
    if world > 1:
        environ |= {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(world)}
        environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(world)}
    line = [sys.executable, "-m", "data_tools", "score", "--input", f"a={tmp_path / 'a.jsonl'}"]
    line += [
        f"b={tmp_path / 'b.jsonl'}",
        "--output",
        str(tmp_path / output),
        "--scorer",
        "column=edu,name=half,scale=0.5",
    ]
    line += ["--quantile", "half", "--filter", "n > 3", "half_quantile > 0.25", "--task-bytes", "4000"]
    line += ["--engine", engine, "--workers", str(workers)]
    return subprocess.Popen(line, env=environ, start_new_session=True, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_documents(folder / "a.jsonl", 500, 1)
    write_documents(folder / "b.jsonl", 300, 2)
    process = start(folder, "one", "local", 1)
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert re.search(r"score: a: \d+ of 500 stay .*; 4 not n > 3", printed)
    return folder


def test_processes_and_ranks_write_the_same_bytes(scored: Path) -> None:
    assert start(scored, "two", "local", 2).wait() == 0
    ranks = [start(scored, "ranks", "mpi", 0, rank, 2) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert digest(scored / "one") == digest(scored / "two") == digest(scored / "ranks")
    assert not list(scored.glob("*.work"))


def test_kills_at_random_moments_lose_nothing(scored: Path) -> None:
    draw = random.Random(3)
    for _ in range(4):
        process = start(scored, "killed", "local", 2)
        time.sleep(draw.uniform(0.5, 2.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(scored, "killed", "local", 2).wait() == 0
    assert digest(scored / "killed") == digest(scored / "one")
    assert not list(scored.glob("killed.work"))
