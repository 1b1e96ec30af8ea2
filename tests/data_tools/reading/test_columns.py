"""Parquet files give what JSON lines of the same rows give, by row groups, whatever the types of the columns."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import read_rows, write_rows

SUFFIXES = (".bin", ".idx", ".meta.parquet")


def contents(prefix: Path) -> list[bytes]:
    return [prefix.with_name(f"{prefix.name}_text_document{suffix}").read_bytes() for suffix in SUFFIXES]


@pytest.mark.parametrize("task_bytes", [0, 2000])
@pytest.mark.parametrize("workers", [1, 2])
def test_parquet_gives_what_json_lines_give(
    harvested: Path, tokenizer_path: Path, tmp_path: Path, task_bytes: int, workers: int
) -> None:
    rows = [row for path in sorted(harvested.glob("*.heldout.jsonl")) for row in read_rows(path)]
    rows = [{**row, "id": i, "text": row["text"] if i % 9 else ""} for i, row in enumerate(rows)]
    lines = write_rows(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=5)
    settings = Settings(tokenizer_path, score_keys=("score",), meta_keys=("id",))
    preprocess([lines], tmp_path / "json", settings)
    totals = preprocess(
        [tmp_path / "in.parquet"], tmp_path / "parquet", settings, LocalEngine(workers), task_bytes=task_bytes
    )
    assert contents(tmp_path / "json") == contents(tmp_path / "parquet")
    assert totals.sequences == sum(bool(row["text"]) for row in rows)


def test_kinds_of_columns(tokenizer_path: Path, tmp_path: Path) -> None:
    texts = ["one", "two", "two"]
    kept = {
        "when": [datetime.date(2026, 1, 2), None, None],
        "tags": [["a", "b"], [], None],
        "url": ["u", None, "中"],
        "score": pa.array([1, 2, 3], pa.int8()),
    }
    settings = Settings(tokenizer_path, text_column="content", score_keys=("score",), meta_keys=("when", "tags", "url"))
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
    found = []
    for kind in kinds:
        pq.write_table(pa.table({**kept, "content": pa.array(texts).cast(kind)}), tmp_path / "in.parquet")
        preprocess([tmp_path / "in.parquet"], tmp_path / "c", settings, force=True)
        found.append(contents(tmp_path / "c"))
    assert all(each == found[0] for each in found)
    metadata = pq.read_table(metadata_path(tmp_path / "c_text_document")).to_pydict()
    assert metadata["when"] == ["2026-01-02", None, None]
    assert metadata["tags"] == ['["a", "b"]', "[]", None]
    assert metadata["url"] == ["u", None, "中"]
    assert metadata["score"] == [1.0, 2.0, 3.0]


def test_bad_rows_of_parquet_have_their_row(tokenizer_path: Path, tmp_path: Path) -> None:
    texts = ["good", None, "good", "good", b"\xff".decode("latin1"), "good"] * 3
    scores = [1.0, 1.0, None, float("inf"), 1.0, float("nan")] * 3
    table = pa.table({"text": texts, "score": scores})
    invalid = pa.array([b"\xff" if text == "\xff" else text and text.encode() for text in texts])
    invalid = pa.Array.from_buffers(pa.string(), len(invalid), invalid.buffers())
    pq.write_table(table.set_column(0, "text", invalid), tmp_path / "in.parquet", row_group_size=4)
    settings = Settings(tokenizer_path, score_keys=("score",))
    with pytest.raises(UserError, match=r"in\.parquet:10: .* \(6 bad rows so far, --max-bad-rows is 4\)"):
        preprocess([tmp_path / "in.parquet"], tmp_path / "c", settings, max_bad_rows=4, task_bytes=50)
    totals = preprocess([tmp_path / "in.parquet"], tmp_path / "c", settings, max_bad_rows=9, task_bytes=50)
    assert totals.sequences == 9
    assert totals.missing_scores == {"score": 6}
    assert pq.read_table(metadata_path(tmp_path / "c_text_document"))["score"].to_pylist() == [1.0, None, None] * 3
    bad = [json.loads(line) for line in (tmp_path / "c.bad_rows.jsonl").read_text().splitlines()]
    assert [place["row"] for place in bad] == [6 * block + row for block in range(3) for row in (2, 4, 5)]
    assert {place["reason"] for place in bad} == {
        "field 'text' is not text",
        "field 'score' is not a finite number",
        "not text in UTF-8",
    }


def test_types_are_named_as_users_see_them(tokenizer_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    columns = {
        "text": pa.array([b"a"], pa.binary()),
        "flag": pa.array([True]),
        "day": pa.array([0], pa.date64()),
        "label": pa.array(["x"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), path)
    for settings, message in (
        (
            Settings(tokenizer_path),
            r"column 'text' is binary \(bytes that no schema marks as text\), not text; name another one, or mark it "
            r"as text where it is UTF-8 \(pyarrow: column\.cast\(pyarrow\.string\(\)\)\)",
        ),
        (Settings(tokenizer_path, text_column="flag"), "column 'flag' is true or false, not text; name another one"),
        (Settings(tokenizer_path, text_column="day"), "column 'day' is dates, not text; name another one"),
        (Settings(tokenizer_path, text_column="label", score_keys=("flag",)), "'flag' is true or false, not numbers"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess([path], tmp_path / "c", settings)
    # What the message says is what helps.
    columns["text"] = columns["text"].cast(pa.string())
    pq.write_table(pa.table(columns), path)
    assert preprocess([path], tmp_path / "c", Settings(tokenizer_path)).sequences == 1


def test_wrong_columns_and_files_are_told(tokenizer_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"body": ["a"], "score": ["b"], "number": [1]}), path)
    for settings, message in (
        (Settings(tokenizer_path), r"in\.parquet: has no column 'text'; it has body, score, number"),
        (Settings(tokenizer_path, text_column="number"), "column 'number' is int64, not text"),
        (Settings(tokenizer_path, text_column="body", score_keys=("score",)), "column 'score' is text, not numbers"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess([path], tmp_path / "c", settings)
    twice = pa.Table.from_arrays([pa.array(["a"]), *[pa.array([1.0])] * 2], names=["body", "score", "score"])
    pq.write_table(twice, path)
    with pytest.raises(UserError, match=r"in\.parquet: has 2 columns 'score'; rename or drop all but one"):
        preprocess([path], tmp_path / "c", settings)
    preprocess([path], tmp_path / "c", replace(settings, score_keys=()))
    for written in tmp_path.glob("c_*"):
        written.unlink()
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:4] + bytes(60) + whole[64:], b"", b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"in\.parquet: cannot be read"):
            preprocess([path], tmp_path / "c", Settings(tokenizer_path, text_column="body"))
    assert [found.name for found in tmp_path.iterdir()] == ["in.parquet"]
