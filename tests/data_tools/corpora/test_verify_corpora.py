"""Verification finds whatever was changed after a corpus was sealed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.corpora.corpus import manifest_path
from data_tools.corpora.corpus_files import sealed_paths
from data_tools.corpora.verify import verify
from data_tools.preprocessing.preprocess import Settings, preprocess
from megatron_kaiyuan.data.metadata import metadata_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, write_sealed_json
from tests.helpers.files.json_lines import write_rows
from tests.helpers.processes.command import Command

TEXTS = ["def f(x): return x\n" * 5, "你好，世界。", "x = 1"]


@pytest.fixture
def prefix(tokenizer_path: Path, tmp_path: Path) -> Path:
    rows = [{"text": text, "score": i / 4} for i, text in enumerate(TEXTS)]
    path = write_rows(tmp_path / "in.jsonl", rows)
    return preprocess([path], tmp_path / "c", Settings(tokenizer_path, score_keys=("score",))).prefixes[0]


def edit_manifest(prefix: Path, change) -> None:
    manifest = json.loads(manifest_path(prefix).read_text())
    change(manifest)
    write_sealed_json(manifest_path(prefix), manifest)


def seal_again(prefix: Path, path: Path) -> None:
    entry = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    edit_manifest(prefix, lambda manifest: manifest["files"].update({path.name: entry}))


def test_a_whole_corpus_passes(prefix: Path) -> None:
    assert len(verify(prefix)) == len(TEXTS)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.parquet"])
def test_one_flipped_bit_anywhere_is_found(prefix: Path, suffix: str) -> None:
    path = prefix.with_name(prefix.name + suffix)
    whole = path.read_bytes()
    for at in range(0, len(whole), max(len(whole) // 20, 1)):
        changed = bytearray(whole)
        changed[at] ^= 4
        path.write_bytes(changed)
        # A changed index may make the tokens look too short, and is then told by their name.
        with pytest.raises(UserError, match=prefix.name):
            verify(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.parquet", ".manifest.json"])
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    path = prefix.with_name(prefix.name + suffix)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}.*not found"):
        verify(prefix)


def test_metadata_must_fit_the_index(prefix: Path) -> None:
    path = metadata_path(prefix)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    seal_again(prefix, path)
    with pytest.raises(UserError, match="2 rows for 3 sequences"):
        verify(prefix)
    lengths = pa.array([table["tokens"][0].as_py(), 1, table["tokens"][2].as_py()], pa.int32())
    pq.write_table(table.set_column(0, "tokens", lengths), path)
    seal_again(prefix, path)
    with pytest.raises(UserError, match="row 1 says 1 tokens"):
        verify(prefix)


def test_ids_must_be_below_the_vocabulary(prefix: Path) -> None:
    edit_manifest(prefix, lambda manifest: manifest["tokenizer"].update(vocab_size=100))
    with pytest.raises(UserError, match="outside the tokenizer's vocabulary of 100"):
        verify(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(tokens=1), "1 tokens of a vocabulary of 1024 are not \\d+ bytes"),
        (lambda manifest: manifest.pop("files"), "a field is missing or wrong"),
        (lambda manifest: manifest.update(format="other"), "is no corpus manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(prefix: Path, change, message: str) -> None:
    edit_manifest(prefix, change)
    with pytest.raises(UserError, match=message):
        verify(prefix)


def test_fast_looks_at_headers_and_sizes_only(prefix: Path) -> None:
    path = prefix.with_name(prefix.name + ".bin")
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert verify(prefix, fast=True).tokens == len(whole) // 2
    with pytest.raises(UserError, match="checksum"):
        verify(prefix)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"has {len(whole) - 1} bytes, its manifest says"):
        verify(prefix, fast=True)


@pytest.mark.parametrize("fast", [True, False])
def test_every_cut_is_found(prefix: Path, fast: bool) -> None:
    for path in sealed_paths(prefix):
        whole = path.read_bytes()
        for size in range(0, len(whole), max(len(whole) // 15, 1)):
            path.write_bytes(whole[:size])
            seal_again(prefix, path)
            with pytest.raises(UserError, match=prefix.name):
                verify(prefix, fast)
        path.write_bytes(whole)
        seal_again(prefix, path)
    verify(prefix, fast)


def test_pointers_must_be_as_a_writer_puts_them(prefix: Path) -> None:
    """Megatron may permute pointers over one .bin; a corpus that was written document by document has none such."""
    path = prefix.with_name(prefix.name + ".idx")
    raw = bytearray(path.read_bytes())
    raw[46:54] = raw[54:62]
    raw[34:38] = raw[38:42]
    path.write_bytes(raw)
    seal_again(prefix, path)
    with pytest.raises(UserError, match=r"says \d+ tokens|do not lie one after another"):
        verify(prefix)


def test_sources_and_skipped_rows_are_of_the_right_type(prefix: Path) -> None:
    whole = manifest_path(prefix).read_text()
    for change in (
        {"sources": "in.jsonl"},
        {"skipped": {"empty text": -1}},
        {"skipped": []},
        {"columns": 5},
        {"columns": ["url"]},
        {"scores": []},
        {"sequences": "3"},
        {"sequences": True},
        {"tokens": 1e3},
        {"tokens": 2**70},
        {"max_token_id": 2000},
        {"dtype": "float32"},
        {"dtype": "int32"},
        {"tokenizer": None},
        {"files": {}},
        {"version": 2},
    ):
        edit_manifest(prefix, lambda manifest, change=change: manifest.update(change))
        with pytest.raises(UserError, match=rf"{prefix.name}\.(manifest\.json|meta\.parquet)"):
            verify(prefix, fast=True)
        manifest_path(prefix).write_text(whole)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}", "NaN"])
def test_a_manifest_that_is_none_is_refused(prefix: Path, text: str) -> None:
    manifest_path(prefix).write_text(text)
    with pytest.raises(UserError, match=manifest_path(prefix).name) as caught:
        verify(prefix)
    assert "\n" not in str(caught.value)


def test_commands(prefix: Path, command: Command) -> None:
    assert command("verify", prefix).stdout.startswith("verify: 1 corpus is whole, 3 sequences")
    assert "whole by headers and sizes" in command("verify", prefix, "--fast").stdout
    assert json.loads(command("verify", prefix, "--json").stdout)["sequences"] == 3
    path = prefix.with_name(prefix.name + ".bin")
    path.write_bytes(path.read_bytes()[:-1])
    failed = command("verify", prefix)
    assert failed.returncode == 2
    assert str(path) in failed.stderr
    assert failed.stderr.count("\n") == 1
