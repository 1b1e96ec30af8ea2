"""JSON lines with any values in any field, and lines of any length: each is read, or is a bad row with its reason."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_tools.reading import lines as lines_module
from data_tools.reading.documents import document_batches
from data_tools.reading.inputs import find_inputs
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings, cut_groups, cut_tasks
from data_tools.reading.text import Rows, line_rows
from data_tools.reading.texts import texts
from data_tools.reading.values import DEEPEST
from megatron_kaiyuan.errors import UserError

FIELDS = ("score", "meta", "domain", "source", "id", "text", "kaiyuan_id")
# Texts may hold halves of surrogate pairs, as JSON escapes them; numbers may be of any length, NaN or infinite.
TEXTS = st.text(max_size=5)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**309, -(10**4299), 2**53 + 1, 2**63, -(2**63) - 1, 2**64])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {}, optional={name: VALUES for name in FIELDS} | {"text": TEXTS | VALUES, "kaiyuan_id": st.integers(0, 9)}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def is_utf8(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def read(path: Path, wanted: Settings, task_bytes: int = 0) -> Rows:
    whole = Rows.empty(wanted)
    for task in cut_tasks(find_inputs([path]), wanted, {}, task_bytes):
        for rows in line_rows(task, wanted):
            for mine, more in ((whole.texts, rows.texts), (whole.scores, rows.scores), (whole.meta, rows.meta)):
                for name, values in more.items():
                    mine[name] += values  # type: ignore[assignment,operator]
            whole.domains += rows.domains
            whole.bad += rows.bad
            whole.count += rows.count
    return whole


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS | VALUES, max_size=4))
def test_any_row_is_read_or_bad(folder: Path, rows: list[Any]) -> None:
    # A file that begins so is refused as one JSON array.
    assume(not json.dumps(rows[:1]).startswith("[[{"))
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = Settings(Path(), score_keys=("score",), meta_keys=("meta", "id"))
    found = read(path, wanted)
    assert found.count == len(rows) and len(found.texts["text"]) + len(found.bad) == len(rows)
    bad = {place.row - 1 for place in found.bad}
    good = [row for number, row in enumerate(rows) if number not in bad]
    assert found.texts["text"] == [row["text"] for row in good]
    for row, score, meta in zip(good, found.scores["score"], found.meta["meta"], strict=True):
        assert (
            math.isnan(score)
            if row.get("score") is None
            else score == float(row["score"]) or row["score"] != row["score"]
        )
        value = row.get("meta")
        assert meta == (value if value is None or is_utf8(value) else json.dumps(value, sort_keys=True))
    try:
        shard = Shard(0, 0, "", cut_groups(find_inputs([path]), wanted, {})[0])
        batches = list(document_batches(shard, Settings(Path())))
    except UserError as error:
        assert "in.jsonl: column 'kaiyuan_id' holds no ids" in str(error)
        return
    documents = pa.Table.from_batches([batch.documents for batch in batches])
    pq.write_table(documents, folder / "out.parquet")
    assert pq.read_table(folder / "out.parquet").equals(documents)
    assert len(documents) + sum(len(batch.bad) for batch in batches) == len(rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": "a", "score": 1' + "0" * 309 + "}", "field 'score' is not a finite number"),
        ('{"text": "a", "score": ' + "9" * 5000 + "}", "a number of thousands of digits"),
        ('{"text": "a", "meta": ' + "[" * 501 + "]" * 501 + "}", "field 'meta' is nested more than 500 deep"),
        (
            '{"text": "a", "meta": ' + '{"a":' * 1000 + "1" + "}" * 1000 + "}",
            "field 'meta' is nested more than 500 deep",
        ),
        ('{"text": "a", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_rows_beyond_reason_are_bad(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "b"}}\n{row}\n')
    found = read(path, Settings(Path(), score_keys=("score",), meta_keys=("meta",)))
    assert found.texts["text"] == ["b"] and [(bad.row, bad.reason) for bad in found.bad] == [(2, reason)]


def test_deep_nesting_of_a_field_nobody_asks_for_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    deep, kept = ("[" * depth + "]" * depth for depth in (900, DEEPEST))
    path.write_text(f'{{"text": "a", "meta": {deep}, "kept": {kept}}}\n')
    found = read(path, Settings(Path(), meta_keys=("kept",)))
    assert found.texts["text"] == ["a"] and found.meta["kept"] == [kept]


@pytest.mark.parametrize("number", ["12345678901234567890123", "-18446744073709551617", "18446744073709551616"])
def test_whole_numbers_of_metadata_are_never_rounded(tmp_path: Path, number: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "a", "id": {number}, "nested": {{"id": [{number}]}}}}\n')
    found = read(path, Settings(Path(), meta_keys=("id", "nested")))
    assert (found.meta["id"], found.meta["nested"]) == ([number], [f'{{"id": [{number}]}}'])
    shard = Shard(0, 0, "", cut_groups(find_inputs([path]), Settings(Path()), {})[0])
    documents = [batch.documents.to_pylist() for batch in document_batches(shard, Settings(Path()))]
    row = next(row for rows in documents for row in rows)
    assert (row["id"], row["nested"]) == (number, f'{{"id": [{number}]}}')


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    most=st.integers(1, 30),
    batch=st.sampled_from([1, 3, 7, 1 << 20]),
    task_bytes=st.sampled_from([0, 1, 5, 30]),
    ends=st.booleans(),
    packed=st.booleans(),
)
def test_lines_above_the_limit_are_bad_and_the_others_unharmed(
    folder: Path, sizes: list[int], most: int, batch: int, task_bytes: int, ends: bool, packed: bool
) -> None:
    path = folder / "in.txt"
    lines = [chr(97 + number % 26) * size for number, size in enumerate(sizes)]
    content = "\n".join(lines) + ("\n" if ends else "")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    wanted = Settings(Path(), max_row_bytes=most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BATCH_BYTES", batch)
        found = read(path, wanted, task_bytes)
        assert found.texts["text"] == [line for line in lines if 0 < len(line) <= most]
        offsets = [sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines))]
        expected = [offset for line, offset in zip(lines, offsets, strict=True) if len(line) > most]
        assert [bad.offset for bad in found.bad] == expected
        assert {bad.reason for bad in found.bad} <= {f"over the {most:,} bytes of --max-row-bytes"}
        assert read(path, Settings(Path(), max_row_bytes=0), task_bytes).texts["text"] == [
            line for line in lines if line
        ]


def test_the_limit_holds_for_whole_files_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    for most, count in ((7, 0), (8, 1)):
        wanted = Settings(Path(), text_documents="file", max_row_bytes=most)
        found = read(tmp_path / "in.txt", wanted)
        assert (len(found.texts["text"]), len(found.bad)) == (count, 1 - count)
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["one", "three", "é" * 2]}), path)
    wanted = Settings(Path(), max_row_bytes=4)
    shard = Shard(0, 0, "", cut_groups(find_inputs([path]), wanted, {})[0])
    batches = list(document_batches(shard, wanted))
    assert [bad.row for batch in batches for bad in batch.bad] == [2]
    with pytest.raises(UserError, match=r"in\.parquet:2: over the 4 bytes of --max-row-bytes; mend or remove"):
        list(texts([path], "text", 4))


def test_an_endless_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    found = read(path, Settings(Path(), max_row_bytes=1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.texts["text"] == ["after"] and found.bad[0].row == 1
    assert peak < 16 << 20
