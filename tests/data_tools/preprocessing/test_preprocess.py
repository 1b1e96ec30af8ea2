"""Preprocessing against Megatron's builder fed document by document, for any number of workers and any packing."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer

from data_tools.corpora.corpus import manifest_path
from data_tools.corpora.verify import verify
from data_tools.engines.local import LocalEngine
from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.reading import lines as lines_module
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import read_rows, write_rows
from tests.helpers.processes.command import Command

SUFFIXES = (".bin", ".idx", ".meta.parquet")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches from little text."""
    monkeypatch.setattr(lines_module, "BATCH_BYTES", 10_000)


def contents(prefix: Path) -> list[bytes]:
    return [prefix.with_name(prefix.name + suffix).read_bytes() for suffix in SUFFIXES]


def write_with_megatron(rows: list[dict], prefix: Path, tokenizer_path: Path) -> None:
    """The loop of Megatron's preprocess_data.py with --append-eod."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.get_vocab_size()))
    for row in rows:
        ids = tokenizer.encode(row["text"]).ids
        lengths = []
        if ids:
            ids.append(tokenizer.token_to_id("<|endoftext|>"))
            lengths.append(len(ids))
        builder.add_document(torch.tensor(ids, dtype=torch.int64), lengths)
    builder.finalize(f"{prefix}.idx")


def test_bytes_are_those_of_megatron(
    harvested: Path, tokenizer_path: Path, tmp_path: Path, small_batches: None
) -> None:
    source = read_rows(harvested / "math.train.jsonl")
    rows = [*source[:50], {**source[0], "text": ""}, *source[50:]]
    path = write_rows(tmp_path / "in.jsonl", rows)
    totals = preprocess([path], tmp_path / "ours", Settings(tokenizer_path, score_keys=("score",)))
    write_with_megatron(rows, tmp_path / "theirs", tokenizer_path)
    for suffix in (".bin", ".idx"):
        ours = tmp_path / f"ours_text_document{suffix}"
        assert ours.read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert totals.sequences == len(source)
    assert totals.skipped == {"empty text": 1}
    metadata = pq.read_table(metadata_path(tmp_path / "ours_text_document")).to_pydict()
    for column in ("domain", "source", "score"):
        assert metadata[column] == [row[column] for row in source]
    assert metadata["bytes"] == [len(row["text"].encode()) for row in source]
    verify(tmp_path / "ours_text_document")


def test_the_number_of_workers_leaves_no_trace(
    harvested: Path, tokenizer_path: Path, tmp_path: Path, small_batches: None
) -> None:
    inputs = sorted(harvested.glob("*.jsonl"))
    settings = Settings(tokenizer_path, score_keys=("score",))
    for workers in (1, 2, 3):
        preprocess(inputs, tmp_path / str(workers) / "corpus", settings, LocalEngine(workers), task_bytes=20_000)
    first, *others = (tmp_path / str(workers) / "corpus_text_document" for workers in (1, 2, 3))
    for other in others:
        assert contents(first) == contents(other)
        assert manifest_path(first).read_bytes() == manifest_path(other).read_bytes()


PACKERS = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_give_the_same_corpus(harvested: Path, tokenizer_path: Path, tmp_path: Path, suffix: str) -> None:
    lines = (harvested / "code.heldout.jsonl").read_bytes().splitlines(keepends=True)
    plain, packed = tmp_path / "in.jsonl", tmp_path / f"in.jsonl{suffix}"
    plain.write_bytes(b"".join(lines))
    # Two frames one after another, as parallel packers write them.
    packed.write_bytes(PACKERS[suffix](b"".join(lines[:1])) + PACKERS[suffix](b"".join(lines[1:])))
    for path, name in ((plain, "plain"), (packed, "packed")):
        preprocess([path], tmp_path / name, Settings(tokenizer_path))
    assert contents(tmp_path / "plain_text_document") == contents(tmp_path / "packed_text_document")
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"in.jsonl{suffix}: cannot be read"):
        preprocess([packed], tmp_path / "truncated", Settings(tokenizer_path))
    assert list(tmp_path.glob("truncated*")) == []


def test_append_eod_is_a_choice(tokenizer_path: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a b"}, {"text": "<|endoftext|>"}])
    preprocess([path], tmp_path / "with", Settings(tokenizer_path))
    preprocess([path], tmp_path / "without", Settings(tokenizer_path, append_eod=False))
    ended, bare = IndexedCorpus(tmp_path / "with_text_document"), IndexedCorpus(tmp_path / "without_text_document")
    for i in range(2):
        assert ended.tokens(i).tolist() == [*bare.tokens(i).tolist(), 0]
        assert 0 not in bare.tokens(i)


def test_each_json_key_gets_a_corpus(tokenizer_path: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "one", "title": "first"}, {"text": "two", "title": ""}])
    totals = preprocess([path], tmp_path / "c", Settings(tokenizer_path, json_keys=("text", "title")))
    assert [prefix.name for prefix in totals.prefixes] == ["c_text_document", "c_title_document"]
    assert [len(IndexedCorpus(prefix)) for prefix in totals.prefixes] == [2, 1]


def test_long_rows_are_left_out_and_counted(tokenizer_path: Path, tmp_path: Path, command: Command) -> None:
    rows = [{"text": "中" * size, "title": "t"} for size in (1, 10, 11, 0, 500)]
    path = write_rows(tmp_path / "in.jsonl", rows)
    common = ("--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer_path, "--json-keys", "text", "title")
    done = command("preprocess", "--input", path, *common, "--max-characters", 10)
    assert done.returncode == 0, done.stderr
    # A row is left out for all of its fields, so that the corpora stay side by side.
    last = done.stdout.splitlines()[-1]
    assert last.startswith("preprocess: 5 documents, ")
    assert last.endswith("; left out: 1 empty text; left out: 2 text over 10 characters")
    assert not (tmp_path / "c.bad_rows.jsonl").exists()
    for key, documents in (("text", 3), ("title", 3)):
        assert len(IndexedCorpus(tmp_path / f"c_{key}_document").document_indices) == documents + 1


def test_plain_text_by_line_or_by_file(tokenizer_path: Path, tmp_path: Path) -> None:
    texts = ["one line\r\n\n  two\nthree", "", "中文\n"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    (tmp_path / "3.txt.gz").write_bytes(gzip.compress(b"packed\nlines"))
    tokenizer = TextTokenizer(tokenizer_path)

    def found(unit: str) -> list[str]:
        preprocess([tmp_path / "*.txt*"], tmp_path / unit, Settings(tokenizer_path, text_documents=unit), task_bytes=7)
        corpus = IndexedCorpus(tmp_path / f"{unit}_text_document")
        return [tokenizer.decode(corpus.tokens(i)[:-1].tolist()) for i in range(len(corpus))]

    assert found("line") == ["one line", "  two", "three", "中文", "packed", "lines"]
    assert found("file") == [texts[0], texts[2], "packed\nlines"]


BAD_LINES = {
    "{broken": "not JSON in UTF-8",
    '"text"': "not a JSON object",
    '{"body": "x", "score": 1}': "no field 'text'",
    '{"text": 5, "score": 1}': "field 'text' is not text",
    '{"text": "x \\ud800 y", "score": 1}': "half of a surrogate pair",
    '{"text": "x", "score": "0.5"}': "field 'score' is not a finite number",
    '{"text": "x", "score": Infinity}': "field 'score' is not a finite number",
    '{"text": "x", "score": true}': "field 'score' is true or false, not a finite number",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_first_bad_row_stops_with_its_place(tokenizer_path: Path, tmp_path: Path, line: str) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "good", "score": 1}, "", line])
    with pytest.raises(UserError, match=rf"in\.jsonl:3: .*{BAD_LINES[line]}"):
        preprocess([path], tmp_path / "c", Settings(tokenizer_path, score_keys=("score",)))
    assert [found.name for found in tmp_path.iterdir()] == ["in.jsonl"]


def test_allowed_bad_rows_are_counted_by_reason(tokenizer_path: Path, tmp_path: Path, small_batches: None) -> None:
    good = {"text": "good " * 500, "score": 0.5}
    path = write_rows(tmp_path / "in.jsonl", [line for bad in BAD_LINES for line in (good, bad)] * 3)
    settings = Settings(tokenizer_path, score_keys=("score",))
    totals = preprocess([path], tmp_path / "c", settings, LocalEngine(2), max_bad_rows=24)
    assert totals.sequences == 24
    assert totals.skipped["field 'score' is not a finite number"] == 6
    assert totals.skipped["field 'score' is true or false, not a finite number"] == 3
    manifest = json.loads(manifest_path(tmp_path / "c_text_document").read_text())
    assert manifest["skipped"] == dict(totals.skipped)
    assert sum(manifest["skipped"].values()) == 24
    with pytest.raises(UserError, match=r"in\.jsonl:48: .*24 bad rows so far, --max-bad-rows is 23"):
        preprocess([path], tmp_path / "d", settings, LocalEngine(2), max_bad_rows=23)


def test_wrong_arguments_are_refused(tokenizer_path: Path, tmp_path: Path) -> None:
    settings = Settings(tokenizer_path)
    with pytest.raises(UserError, match="--input"):
        preprocess([], tmp_path / "c", settings)
    with pytest.raises(UserError, match=r"no\.jsonl: input not found"):
        preprocess([tmp_path / "no.jsonl"], tmp_path / "c", settings)
    path = write_rows(tmp_path / "in.jsonl", [])
    right: dict[str, Any] = {"output_prefix": tmp_path / "c", "settings": settings}
    for wrong, message in (
        ({"max_bad_rows": -1}, "--max-bad-rows -1"),
        ({"task_bytes": -1}, "--task-bytes -1"),
        ({"settings": Settings(tokenizer_path, text_documents="page")}, "--text-documents page"),
        ({"settings": Settings(tokenizer_path, json_keys=("a", "a"))}, "--json-keys: name at least one"),
        ({"settings": Settings(tokenizer_path, json_keys=("a/b",))}, "--json-keys a/b: becomes part of a file's name"),
        ({"output_prefix": Path()}, r"--output-prefix \.: names no file or folder of its own"),
        ({"settings": Settings(tokenizer_path, json_keys=("a", "b"), text_column="c")}, "--text-column names one"),
        ({"settings": Settings(tokenizer_path, score_keys=("tokens",))}, "metadata column 'tokens'"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess([path], **{**right, **wrong})
    assert [found.name for found in tmp_path.iterdir()] == ["in.jsonl"]


def test_command_takes_several_inputs_and_says_what_it_did(
    harvested: Path, tokenizer_path: Path, tmp_path: Path, command: Command
) -> None:
    inputs = sorted(harvested.glob("*.heldout.jsonl"))
    common = ("--output-prefix", tmp_path / "all", "--tokenizer-model", tokenizer_path, "--score-keys", "score")
    done = command("preprocess", "--input", *inputs, *common, "--workers", 2)
    assert done.returncode == 0, done.stderr
    rows = [row for path in inputs for row in read_rows(path)]
    assert done.stdout.splitlines()[-1].startswith(f"preprocess: {len(rows)} documents, ")
    assert done.stderr == ""
    bad = write_rows(tmp_path / "bad.jsonl", ["{"])
    refused = command("preprocess", "--input", bad, *common)
    assert refused.returncode == 2
    assert "all_text_document: holds a corpus already, made from something else" in refused.stderr
    failed = command("preprocess", "--input", bad, *common, "--force")
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {bad}:1: not JSON")
    assert failed.stderr.count("\n") == 1


def test_a_script_may_call_the_tokenizers_engine_as_it_was_called(
    harvested: Path, tokenizer_path: Path, tmp_path: Path, command: Command
) -> None:
    source = sorted(harvested.glob("*.heldout.jsonl"))[0]
    common = ("--input", source, "--tokenizer-model", tokenizer_path, "--workers", 1)
    done = command("preprocess", *common, "--output-prefix", tmp_path / "then", "--engine", "reference")
    assert done.returncode == 0 and "--tokenizer-engine reference now" in done.stderr
    command("preprocess", *common, "--output-prefix", tmp_path / "now", "--tokenizer-engine", "reference")
    bins = [(tmp_path / f"{name}_text_document.bin").read_bytes() for name in ("then", "now")]
    assert bins[0] == bins[1]


def test_a_corpus_may_lie_in_the_folder_that_it_was_made_from(tokenizer_path: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "one"}, {"text": 2}])
    settings = Settings(tokenizer_path)
    for _ in range(2):
        totals = preprocess([tmp_path], tmp_path / "out", settings, max_bad_rows=1)
        assert totals.sequences == 1


def test_metadata_that_were_changed_by_hand_are_not_written_over(tokenizer_path: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": "one", "score": 1.0}])
    settings = Settings(tokenizer_path, score_keys=("score",))
    preprocess([source], tmp_path / "c", settings)
    path = metadata_path(tmp_path / "c_text_document")
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", pa.array([7.0])), path)
    for force in (False, True):
        with pytest.raises(UserError, match=r"c_text_document\.meta\.parquet: was changed after it was written"):
            preprocess([source], tmp_path / "c", settings, force=force)
    assert pq.read_table(path)["score"].to_pylist() == [7.0]
