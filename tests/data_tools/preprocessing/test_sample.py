"""The sample that proves the engine: from all over the inputs, of a size that fits them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.preprocessing.sample import sample_texts
from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import Settings
from tests.helpers.files.json_lines import write_rows


def sample(*paths: Path, **settings: Any) -> list[str]:
    return sample_texts(find_inputs(paths), Settings(Path(), **settings))


def numbered(count: int, size: int = 1000) -> list[dict[str, str]]:
    return [{"text": f"{number:06} " + "x" * size} for number in range(count)]


def test_of_small_inputs_everything(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{i}.jsonl", numbered(3 * i + 1, 10)) for i in range(3)]
    assert sorted(sample(*paths)) == sorted(row["text"] for i in range(3) for row in numbered(3 * i + 1, 10))
    assert sample(write_rows(tmp_path / "empty.jsonl", [])) == []


@pytest.mark.parametrize(("megabytes", "expected"), [(1, 0.2), (10, 0.5), (60, 2.0)])
def test_size_and_spread(tmp_path: Path, megabytes: int, expected: float) -> None:
    rows = numbered(megabytes * 1000)
    half = len(rows) // 2
    found = sample(write_rows(tmp_path / "a.jsonl", rows[:half]), write_rows(tmp_path / "b.jsonl", rows[half:]))
    assert sum(map(len, found)) == pytest.approx(expected * 1e6, rel=0.1)
    numbers = sorted(int(text[:6]) for text in found if text[6:7] == " ")
    assert len(set(numbers)) == len(numbers)
    gaps = [after - before for before, after in zip([0, *numbers], [*numbers, len(rows)], strict=True)]
    assert max(gaps) < len(rows) / 20


def test_long_texts_give_a_part_each(tmp_path: Path) -> None:
    rows = [{"text": letter * 3_000_000} for letter in "abcdefgh"]
    found = sample(write_rows(tmp_path / "in.jsonl", rows))
    assert {text[0] for text in found} == set("abcdefgh")
    assert sum(map(len, found)) == pytest.approx(1.2e6, rel=0.1)
    assert max(map(len, found)) <= 1 << 15


@pytest.mark.parametrize("kind", ["gz", "parquet", "whole"])
def test_other_formats_give_as_much(tmp_path: Path, kind: str) -> None:
    rows = numbered(3000)
    if kind == "gz":
        path, settings = tmp_path / "in.jsonl.gz", {}
        plain = write_rows(tmp_path / "in.jsonl", rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif kind == "whole":
        path, settings = tmp_path / "in.txt", {"text_documents": "file"}
        path.write_text("\n".join(row["text"] for row in rows))
    else:
        path, settings = tmp_path / "in.parquet", {}
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    found = sample(path, **settings)
    assert sum(map(len, found)) == pytest.approx(2e5, rel=0.1)
