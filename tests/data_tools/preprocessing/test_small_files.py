"""Many small files: they share shards, and the corpus is that of a shard a file, for any number of workers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import cut_groups, cut_tasks
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows


def small_files(folder: Path, count: int) -> Path:
    """Files of every format, some empty, each with its number in its text."""
    folder.mkdir()
    for number in range(count):
        rows = [{"text": f"document {number} row {row}", "domain": f"d{number % 3}"} for row in range(number % 4)]
        path = folder / f"{number:05d}"
        if number % 5 == 0:
            path.with_suffix(".txt").write_text("".join(f"{row['text']}\n" for row in rows))
        elif number % 5 == 1 and rows:
            # Parquet and lines do not share a group: side by side each would have one of its own.
            pq.write_table(pa.Table.from_pylist(rows), folder / f"p{number:05d}.parquet")
        elif number % 5 == 2:
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            write_rows(path.with_suffix(".jsonl"), rows)
    return folder


def written(prefix: Path) -> dict[str, bytes]:
    return {path.name[len(prefix.name) :]: path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}*")}


def test_the_bytes_are_those_of_a_shard_a_file(tmp_path: Path, tokenizer_path: Path) -> None:
    inputs = small_files(tmp_path / "in", 60)
    # The rows of one are far more than a task of 100 bytes, and lie between small files.
    write_rows(inputs / "00030a.jsonl", [{"text": f"a long file, row {row}"} for row in range(50)])
    settings, files = Settings(tokenizer_path), find_inputs([inputs])
    assert len(cut_groups(files, settings, {})) == 2
    assert [len(group.tasks) for group in cut_groups(files, settings, {}, 100)] == [1] * len(
        cut_tasks(files, settings, {}, 100)
    )
    some = cut_groups(files, settings, {}, 30_000)
    assert 3 < len(some) < len(files) / 2 and sum(len(group.tasks) for group in some) == len(files)
    found = []
    for number, (task_bytes, workers) in enumerate([(100, 1), (0, 1), (30_000, 1), (30_000, 2)]):
        prefix = tmp_path / str(number) / "corpus"
        preprocess([inputs], prefix, settings, LocalEngine(workers), task_bytes=task_bytes)
        found.append(written(prefix))
    assert all(one == found[0] for one in found[1:]) and len(found[0]) == 4


def test_bad_rows_are_named_by_their_own_file_and_line(tmp_path: Path, tokenizer_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        write_rows(folder / f"{number}.jsonl", [{"text": "one"}, {"other": number}, {"text": "three"}][: number + 1])
    with pytest.raises(UserError, match=r"4\.jsonl:2: no field 'text' \(4 bad rows so far, --max-bad-rows is 3\)"):
        preprocess([folder], tmp_path / "x", Settings(tokenizer_path), max_bad_rows=3)
    for number, task_bytes in enumerate((0, 16)):
        prefix = tmp_path / f"y{number}"
        totals = preprocess([folder], prefix, Settings(tokenizer_path), max_bad_rows=5, task_bytes=task_bytes)
        rows = [json.loads(line) for line in (tmp_path / f"y{number}.bad_rows.jsonl").read_text().splitlines()]
        assert totals.sequences == 10
        assert [(Path(row["file"]).name, row["line"]) for row in rows] == [(f"{n}.jsonl", 2) for n in range(1, 6)]


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_input_without_a_document_is_refused(tmp_path: Path, tokenizer_path: Path, content: str) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl and 1 more files: no document in \d rows"):
        preprocess([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "x", Settings(tokenizer_path))
    assert not (tmp_path / "x_text_document.idx").exists()
