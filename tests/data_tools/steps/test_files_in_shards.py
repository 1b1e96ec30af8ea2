"""Small files share a shard of dedup and score: the rows are those of a shard a file, and lead back to their lines."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.request import Request
from data_tools.engines.local import LocalEngine
from data_tools.reading.shard import parse_document_id
from data_tools.scores.documents import ScoreOptions, score_documents
from data_tools.steps.datasets import find_datasets, reading_settings
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

# Task bytes that one of these files fills with what it costs besides its bytes.
SHARD_A_FILE = 9000
# Of the n-th file: fields come and go, and have other types than in the files beside it.
NUMBERS: tuple[Any, ...] = (7, 2.5, 2**60 + 1, True, None)


def mixed_files(folder: Path, count: int = 50) -> Path:
    folder.mkdir()
    for number in range(count):
        own = {"n": NUMBERS[number % 5]} if number % 10 < 5 else {"label": f"l{number}"}
        rows = [{"text": f"file {number} row {row}", "grade": number + row, **own} for row in range(number % 4)]
        path = folder / f"a{number:03d}"
        if number >= 35 and rows:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"p{number:03d}.parquet")
        elif number % 7 == 0:
            path.with_suffix(".txt").write_text("".join(f"\n{row['text']}\n" for row in rows))
        elif number % 7 == 1:
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            lines = [json.dumps(row) for row in rows]
            path.with_suffix(".jsonl").write_text("\n\n".join([*lines[:1], *(["no row"] if lines else []), *lines[1:]]))
    return folder


def score(words: list[str], output: Path, task_bytes: int = 0, workers: int = 1, **options: Any) -> dict[str, Any]:
    wanted = ScoreOptions(**{"scorers": ["column=grade,name=points"], "max_bad_rows": 100, **options})
    score_documents(words, output, wanted, reading_settings(), LocalEngine(workers), task_bytes)
    return json.loads((output / "manifest.json").read_text())


def rows_of(output: Path, kind: str) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((output / kind).rglob("*.parquet")):
        rows += pq.ParquetFile(path).read().to_pylist()
    return rows


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its id and the columns that it has no value in; numbers and their JSON text are alike."""
    return {name: str(value) for name, value in row.items() if value is not None and name != "kaiyuan_id"}


def test_the_rows_are_those_of_a_shard_a_file_in_fewer_files(tmp_path: Path) -> None:
    inputs = mixed_files(tmp_path / "in")
    together = score([str(inputs)], tmp_path / "one", filters=["points > 9"])
    apart = score([str(inputs)], tmp_path / "each", SHARD_A_FILE, filters=["points > 9"])
    assert len(list((tmp_path / "one/documents").iterdir())) == 2  # lines, and Parquet
    for kind in ("documents", "dropped"):
        ours, theirs = (
            sorted(json.dumps(_alike(whole(row)), sort_keys=True) for row in rows_of(tmp_path / name, kind))
            for name in ("one", "each")
        )
        assert ours == theirs and len(ours) > 10
    schemas = {pq.read_schema(path).remove_metadata() for path in (tmp_path / "one/documents").iterdir()}
    assert len(schemas) == 1
    assert len(list((tmp_path / "each/documents").iterdir())) == len(list(inputs.iterdir()))
    counts = together["datasets"][""]
    assert counts == apart["datasets"][""]
    assert counts["files"] == [str(path) for path in sorted(inputs.iterdir())]


def _alike(row: dict[str, str]) -> dict[str, str]:
    """`n` is a bool in one file and a number in others: as JSON text "true", as a value True."""
    return {name: value.lower().removesuffix(".0") for name, value in row.items()}


def test_an_id_leads_to_its_file_and_line(tmp_path: Path) -> None:
    inputs = mixed_files(tmp_path / "in")
    # A file that is cut into parts stands between the shared shards.
    write_rows(inputs / "a020b.jsonl", [{"text": f"long row {row}", "grade": row} for row in range(2000)])
    score([str(inputs)], tmp_path / "out", task_bytes=40_000, scorers=["column=grade,name=points"])
    places = pq.read_table(tmp_path / "out/inputs.parquet").to_pylist()
    shards = {place["shard"] for place in places}
    assert 5 < len(shards) < 30 and len({place["file"] for place in places}) == len(list(inputs.iterdir()))
    assert any(place["start"] for place in places)
    found = rows_of(tmp_path / "out", "documents")
    assert len({row["kaiyuan_id"] for row in found}) == len(found) > 2000
    for row in found:
        _, shard, number = parse_document_id(row["kaiyuan_id"])
        place = [one for one in places if one["shard"] == shard and one["first_row"] <= number][-1]
        path, at = Path(place["file"]), number - place["first_row"]
        if path.suffix == ".parquet":
            assert pq.read_table(path).column("text")[at].as_py() == row["text"]
            continue
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        begin = content.rfind(b"\n", 0, place["start"]) + 1 if place["start"] else 0
        if place["start"] and content[place["start"] - 1 : place["start"]] != b"\n":
            begin = content.index(b"\n", place["start"]) + 1
        line = content[begin:].decode().split("\n")[at]
        assert row["text"] == (line if path.suffix == ".txt" else json.loads(line)["text"])


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    inputs = mixed_files(tmp_path / "in")
    for workers in (1, 2):
        score([str(inputs)], tmp_path / str(workers), task_bytes=40_000, workers=workers)
    names = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(names) > 8
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)


def test_messages_name_the_file_within_the_shard(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        write_rows(folder / f"{number}.jsonl", [{"text": "one", "n": number}, {"other": 1}][: 1 + number // 3])
    with pytest.raises(UserError, match=r"4\.jsonl:2: no field 'text' \(2 bad rows so far, --max-bad-rows is 1\)"):
        score([str(folder)], tmp_path / "out", scorers=["column=n,name=m"], max_bad_rows=1)
    for name in "345":
        write_rows(folder / f"{name}.jsonl", [{"text": "one", "n": 3}])
    write_rows(folder / "4.jsonl", [{"text": "two", "n": "many"}])
    with pytest.raises(UserError, match=r"4\.jsonl: column 'n' is text, not numbers"):
        score([str(folder)], tmp_path / "out", scorers=["column=n,name=m"])
    with pytest.raises(UserError, match=r"4\.jsonl: --score: column 'n' is text, not numbers"):
        deduplicate(Request((str(folder),), tmp_path / "unique", score="n"), reading_settings(), LocalEngine(1))
    for name, numbers in (("a", [1]), ("b", [[1]])):
        pq.write_table(pa.table({"text": ["a"], "n": numbers}), tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: column 'n' is list<.*, and int64 in another file"):
        score([str(tmp_path / f"{name}.parquet") for name in "ab"], tmp_path / "out", scorers=["rules"])


def test_an_index_of_shared_shards_knows_every_file(tmp_path: Path) -> None:
    drawn = random.Random(4)
    words = [" ".join("".join(drawn.choices("abcdefgh", k=6)) for _ in range(30)) for _ in range(20)]
    for part, texts in (("a", words), ("b", [*words[5:8], "a text of its own that nothing else has at all"])):
        (tmp_path / part).mkdir()
        for number, text in enumerate(texts):
            write_rows(tmp_path / part / f"{number:02d}.jsonl", [{"text": f"{text} {part}"}])
    assert len(find_datasets([str(tmp_path / "a")], reading_settings())[0].shards) == 1
    first = Request((str(tmp_path / "a"),), tmp_path / "one", index=tmp_path / "index")
    assert deduplicate(first, reading_settings(), LocalEngine(1))["datasets"][""]["documents"] == 20
    again = Request((str(tmp_path / "b"),), tmp_path / "two", against=(tmp_path / "index",), max_removed=1.0)
    deduplicate(again, reading_settings(), LocalEngine(1))
    assert [row["text"][:6] for row in rows_of(tmp_path / "two", "documents")] == ["a text"]
    ids = {row["text"][:-2]: row["kaiyuan_id"] for row in rows_of(tmp_path / "one", "documents")}
    gone = {row["text"][:-2]: row["duplicate_of"] for row in rows_of(tmp_path / "two", "dropped")}
    assert gone == {text: ids[text] for text in words[5:8]}
    write_rows(tmp_path / "a/06.jsonl", [{"text": "changed"}])
    with pytest.raises(UserError, match=r"a/06\.jsonl: of the index .* is gone or was changed"):
        deduplicate(
            Request(again.inputs, tmp_path / "three", against=again.against), reading_settings(), LocalEngine(1)
        )
