"""Deduplication from documents to documents: who goes, who stays and why, the guards, and what a user may do wrong."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.keepers import Rules
from data_tools.dedup.request import Request, make_recipe
from data_tools.engines.local import LocalEngine
from data_tools.steps.datasets import reading_settings
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows
from tests.helpers.files.near_copies import edited, real_documents
from tests.helpers.processes.command import Command


def dedup(*inputs: str, output: Path, **options: Any) -> dict[str, Any]:
    request = Request(inputs, output, **{"max_removed": 1.0, **options})
    return deduplicate(request, reading_settings(), LocalEngine(1))


def table(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist() if folder.exists() else []


def texts(folder: Path) -> list[str]:
    return [row["text"] for row in table(folder)]


@pytest.fixture(scope="module")
def pieces() -> tuple[str, ...]:
    return real_documents(60)


def near(text: str, seed: int = 0) -> str:
    return edited(text, 0.01, random.Random(seed), ["banana", "walrus"])


def test_the_best_scored_stays_and_every_copy_is_counted(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    a, b, c = pieces[:3]
    rows = [
        {"text": a, "score": 1.0},
        {"text": a.upper() + "!!", "score": 3.0},
        {"text": near(a), "score": 2.0},
        {"text": b, "score": None},
        {"text": near(b), "score": -5.0},
        {"text": c},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    report = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", score="score")
    kept, gone = table(tmp_path / "out/documents"), table(tmp_path / "out/dropped")
    assert [(row["kaiyuan_id"], row["duplicate_count"]) for row in kept] == [(1, 3), (4, 2), (5, 1)]
    assert [(row["kaiyuan_id"], row["kaiyuan_dropped"], row["duplicate_of"]) for row in gone] == [
        (0, "exact duplicate", 1),
        (2, "duplicate", 1),
        (3, "duplicate", 4),
    ]
    assert "duplicate_of" not in kept[0] and "dropped" not in kept[0]
    assert report["datasets"][""] | {"removed_share": 0} == {
        "documents": 6,
        "exact": 1,
        "near": 2,
        "quarantined": 0,
        "removed": 3,
        "removed_share": 0,
    }
    assert report["clusters"] == {"": {"2": 1, "3-4": 1}}
    pair = report["pairs"][0]
    assert 0.7 <= pair["jaccard"] < 1 and pair["removed"]["text"] != pair["stays"]["text"]


def test_without_a_score_the_smallest_id_stays_and_earlier_counts_are_added(
    tmp_path: Path, pieces: tuple[str, ...]
) -> None:
    rows = [{"text": pieces[0], "duplicate_count": 4}, {"text": near(pieces[0]), "duplicate_count": 2}]
    write_rows(tmp_path / "a.jsonl", [*rows, {"text": pieces[1]}])
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    assert [row["duplicate_count"] for row in table(tmp_path / "out/documents")] == [6, 1]


def test_texts_without_words_are_no_duplicates_of_each_other(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in ("", "", "!?", " \n", pieces[0])])
    report = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    assert report["datasets"][""]["removed"] == 0
    assert len(table(tmp_path / "out/documents")) == 5


def test_input_without_duplicates(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "one document and no other one"}])
    report = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    assert report["datasets"][""]["removed"] == 0 and report["pairs"] == []
    assert len(table(tmp_path / "out/documents")) == 1


def test_datasets_are_compared_within_or_across_with_priority(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "web.jsonl", [{"text": near(pieces[0]), "q": 9}, {"text": pieces[1], "q": 9}])
    write_rows(tmp_path / "wiki.jsonl", [{"text": pieces[0], "q": 1}, {"text": pieces[2], "q": 1}])
    words = [f"wiki={tmp_path / 'wiki.jsonl'}", f"web={tmp_path / 'web.jsonl'}"]
    within = dedup(*words, output=tmp_path / "within", score="q")
    assert all(counts["removed"] == 0 for counts in within["datasets"].values())
    # Priority comes before the score.
    across = dedup(*words, output=tmp_path / "across", score="q", rules=Rules(across=True))
    assert {name: counts["removed"] for name, counts in across["datasets"].items()} == {"wiki": 0, "web": 1}
    gone = table(tmp_path / "across/dropped/web")
    assert [(row["duplicate_in"], row["q"]) for row in gone] == [("wiki", 9)]
    other = dedup(*reversed(words), output=tmp_path / "other", rules=Rules(across=True))
    assert {name: counts["removed"] for name, counts in other["datasets"].items()} == {"wiki": 1, "web": 0}


def chain(text: str, links: int) -> list[str]:
    """Each is a near-duplicate of the one before, and the last one is far from the first."""
    draw, found = random.Random(4), [text]
    for _ in range(links - 1):
        found.append(edited(found[-1], 0.02, draw, ["banana", "walrus", "gimlet"]))
    return found


def test_a_large_cluster_is_quarantined_and_loses_exact_duplicates_only(
    tmp_path: Path, pieces: tuple[str, ...]
) -> None:
    links = chain(pieces[0], 12)
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in [*links, links[3], pieces[1], near(pieces[1])]])
    free = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "free")
    assert len(texts(tmp_path / "free/documents")) == 2 and free["quarantined_clusters"] == []
    held = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "held", rules=Rules(max_cluster=11))
    assert [row["kaiyuan_dropped"] for row in table(tmp_path / "held/dropped")] == ["exact duplicate", "duplicate"]
    assert held["quarantined_clusters"] == [{"scope": "", "cluster": 0, "documents": 13}]
    assert held["datasets"][""]["quarantined"] == 12
    # Its size is that of its different texts.
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "just", rules=Rules(max_cluster=12))
    assert len(texts(tmp_path / "just/documents")) == 2


def jaccard(one: str, other: str) -> float:
    import re

    words = [re.findall("[a-z]+", text.lower()) for text in (one, other)]
    sets = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in words]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_with_keeper_only_what_is_near_a_document_that_stays_goes(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    links = chain(pieces[0], 12)
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in [*links, links[-1].upper()]])
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", rules=Rules(direct=True))
    kept = {row["kaiyuan_id"]: row["text"] for row in table(tmp_path / "out/documents")}
    gone = table(tmp_path / "out/dropped")
    assert 1 < len(kept) < 12
    assert all(jaccard(row["text"], kept[row["duplicate_of"]]) >= 0.7 for row in gone)
    stay = list(kept.values())
    assert all(jaccard(a, b) < 0.7 for i, a in enumerate(stay) for b in stay[:i])


def test_a_wipe_out_stops_before_anything_is_written(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": near(pieces[0], seed)} for seed in range(40)])
    write_rows(tmp_path / "b.jsonl", [{"text": text} for text in pieces])
    words = [f"same={tmp_path / 'a.jsonl'}", f"other={tmp_path / 'b.jsonl'}"]
    with pytest.raises(UserError, match=r"dataset same: 39 of 40 documents \(97.5%\)") as raised:
        dedup(*words, output=tmp_path / "out", max_removed=0.5)
    assert not (tmp_path / "out").exists()
    path = next((tmp_path / "out.work").rglob("report.json"))
    assert str(path) in str(raised.value)
    assert json.loads(path.read_text())["datasets"]["same"]["near"] == 39
    # The work that was done is used, and the report is in the folder.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.work").rglob("*.bands")}
    stages = []
    LocalEngine.run, run = lambda self, stage: stages.append(stage.title) or run(self, stage), LocalEngine.run
    try:
        dedup(*words, output=tmp_path / "out", max_removed=0.98)
    finally:
        LocalEngine.run = run
    assert before and stages and not (tmp_path / "out.work").exists()
    assert json.loads((tmp_path / "out/report.json").read_text())["datasets"]["same"]["removed"] == 39


def test_exact_only_and_columns_beside(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    rows = [{"text": text} for text in (pieces[0], pieces[0].lower(), near(pieces[0]), pieces[1])]
    write_rows(tmp_path / "a.jsonl", rows)
    report = dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", exact_only=True, columns=True)
    assert (report["datasets"][""]["exact"], report["datasets"][""]["near"]) == (1, 0)
    assert not (tmp_path / "out/documents").exists()
    assert table(tmp_path / "out/columns") == [
        {"kaiyuan_id": 0, "duplicate_of": None, "duplicate_in": None, "duplicate_count": 2, "cluster": 0},
        {"kaiyuan_id": 1, "duplicate_of": 0, "duplicate_in": "", "duplicate_count": 1, "cluster": 0},
        {"kaiyuan_id": 2, "duplicate_of": None, "duplicate_in": None, "duplicate_count": 1, "cluster": 2},
        {"kaiyuan_id": 3, "duplicate_of": None, "duplicate_in": None, "duplicate_count": 1, "cluster": 3},
    ]


def test_columns_say_what_the_documents_do(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": t} for p in pieces for t in (p, near(p, 1), near(p, 2))])
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "documents")
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "columns", columns=True)
    rows = table(tmp_path / "columns/columns")
    kept, gone = table(tmp_path / "documents/documents"), table(tmp_path / "documents/dropped")
    names = ("kaiyuan_id", "duplicate_count")
    stay = [row for row in rows if row["duplicate_of"] is None]
    assert [[row[name] for name in names] for row in stay] == [[row[name] for name in names] for row in kept]
    assert {row["kaiyuan_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"] is not None} == {
        row["kaiyuan_id"]: row["duplicate_of"] for row in gone
    }


def test_parquet_in_keeps_its_ids_and_columns(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    ids = np.array([70, 7, 9], np.uint64)
    rows = {"kaiyuan_id": ids, "text": [pieces[0], near(pieces[0]), pieces[1]], "tags": [["a"], [], None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    dedup(str(tmp_path / "a.parquet"), output=tmp_path / "out")
    kept = table(tmp_path / "out/documents")
    # The smallest id stays, wherever it stands.
    assert [(row["kaiyuan_id"], row["tags"], row["duplicate_count"]) for row in kept] == [(7, [], 2), (9, None, 1)]
    assert table(tmp_path / "out/dropped")[0]["duplicate_of"] == 7
    with pytest.raises(UserError, match=r"a\.parquet: has no column 'quality'"):
        dedup(str(tmp_path / "a.parquet"), output=tmp_path / "scored", score="quality")


def test_what_stays_goes_in_again_and_stays(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": t} for p in pieces for t in (near(p, 1), p, near(p, 2), p.upper())])
    dedup(f"web={tmp_path / 'a.jsonl'}", output=tmp_path / "one", task_bytes=50_000)
    report = dedup(f"web={tmp_path / 'one/documents/web'}", output=tmp_path / "two")
    assert report["datasets"]["web"]["removed"] == 0
    columns = ["kaiyuan_id", "text", "duplicate_count"]
    one, two = (pq.read_table(tmp_path / name / "documents", columns=columns) for name in ("one", "two"))
    assert one.sort_by("kaiyuan_id") == two.sort_by("kaiyuan_id")
    assert sum(one["duplicate_count"].to_pylist()) == 4 * len(pieces)


def test_the_preset_joins_without_a_check_and_knows_no_exact_duplicates(
    tmp_path: Path, pieces: tuple[str, ...]
) -> None:
    rows = [pieces[0], near(pieces[0]), "too short here", "too short here", pieces[1]]
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in rows])
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", recipe=make_recipe("kaiyuan"))
    # The released code gives texts of fewer than five words no signature.
    assert texts(tmp_path / "out/documents") == [rows[0], *rows[2:]]
    assert [row["kaiyuan_dropped"] for row in table(tmp_path / "out/dropped")] == ["duplicate"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "quality"}, r"--score quality: no document has this field as a number"),
        ({"score": "title"}, r"a\.jsonl: --score: column 'title' is text, not numbers"),
        ({"index": Path("out/../out/index"), "output": Path("out/../out")}, r"--output .*: lies around --index out"),
        ({"index": Path("out"), "output": Path("./out")}, r"--output out: is the folder of --index out"),
        ({"index": Path("out"), "output": Path("out/new")}, r"--output out/new: lies in --index out"),
        ({"index": Path("i"), "against": (Path("a"), Path("i/"))}, r"--index i: is the folder of --against i"),
        ({"index": Path("i/new"), "against": (Path("i"),)}, r"--index i/new: lies in --against i"),
        ({"output": Path("out"), "against": (Path("out/index"),)}, r"--output out: lies around --against out/index"),
        ({"max_removed": 2.0}, r"--max-removed 2: is a share"),
        ({"max_removed": float("nan")}, r"--max-removed nan: is a share"),
        ({"rules": Rules(max_cluster=10**30)}, r"--max-cluster 10+: must be between 0 and 1,000,000,000,000,000$"),
        ({"max_bad_rows": -1}, r"--max-bad-rows -1: must be between 0 and "),
        ({"rules": Rules(direct=True), "recipe": make_recipe("kaiyuan")}, r"--keeper: needs the check"),
        ({"against": (Path("/nowhere"),)}, r"/nowhere/manifest.json: index of deduplication not found"),
    ],
)
def test_wrong_words_are_one_line(tmp_path: Path, options, message: str) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "some words", "title": "x"}])
    with pytest.raises(UserError, match=message) as raised:
        dedup(str(tmp_path / "a.jsonl"), **{"output": tmp_path / "out", **options})
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_bad_rows_are_named_and_may_be_left_out(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    rows = [{"text": pieces[0]}, '{"text": 7}', {"text": near(pieces[0])}]
    write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"a\.jsonl:2: field 'text' is not text"):
        dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", max_bad_rows=1)
    assert texts(tmp_path / "out/documents") == [pieces[0]]


def test_what_the_command_did_not_make_is_not_replaced(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in pieces[:3]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a folder of documents"):
        dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "new")
    with pytest.raises(UserError, match="holds a folder of documents already"):
        dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "new", rules=Rules(max_cluster=5))


def test_the_command_prints_what_stays(tmp_path: Path, pieces: tuple[str, ...], command: Command) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in (pieces[0], near(pieces[0]), pieces[1])])
    words = ("dedup", "--input", f"web={tmp_path / 'a.jsonl'}", "--output", tmp_path / "out")
    done = command(*words)
    assert done.returncode == 0 and "web: 2 of 3 stay; removed 33.3%: 0 exact, 1 near" in done.stdout
    again = command(*words, "--json")
    assert json.loads(again.stdout)["datasets"]["web"]["near"] == 1
    wrong = command(*words, "--bands", "0")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--bands 0: must be" in wrong.stderr


def test_another_seed_is_another_product(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in pieces[:3]])
    dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out")
    with pytest.raises(UserError, match="made from something else"):
        dedup(str(tmp_path / "a.jsonl"), output=tmp_path / "out", recipe=replace(make_recipe(None), seed=5))


@pytest.mark.parametrize("column", ["duplicate_of", "duplicate_in", "duplicate_count"])
def test_a_column_that_would_be_written_over_is_named(tmp_path: Path, pieces: tuple[str, ...], column: str) -> None:
    pq.write_table(pa.table({"text": pieces[:3], column: ["mine"] * 3}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: has a column '{column}', which dedup writes itself"):
        dedup(str(tmp_path / "a.parquet"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
