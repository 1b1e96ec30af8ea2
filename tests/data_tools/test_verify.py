"""Verification finds whatever was changed after a corpus was sealed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from json_lines import write_rows

from data_tools.corpus import manifest_path, metadata_path
from data_tools.preprocess import Settings, preprocess
from data_tools.verify import decode_sample, inspect_corpus, verify
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

TEXTS = ["def f(x): return x\n" * 5, "你好，世界。", "x = 1"]


@pytest.fixture
def prefix(tokenizer_path: Path, tmp_path: Path) -> Path:
    rows = [{"text": text, "score": i / 4} for i, text in enumerate(TEXTS)]
    path = write_rows(tmp_path / "in.jsonl", rows)
    return preprocess([path], tmp_path / "c", Settings(tokenizer_path, score_keys=("score",))).prefixes[0]


def edit_manifest(prefix: Path, change) -> None:
    manifest = json.loads(manifest_path(prefix).read_text())
    change(manifest)
    manifest_path(prefix).write_text(json.dumps(manifest))


def seal_again(prefix: Path, path: Path) -> None:
    entry = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    edit_manifest(prefix, lambda manifest: manifest["files"].update({path.name: entry}))


def test_a_whole_corpus_passes(prefix: Path):
    assert len(verify(prefix)) == len(TEXTS)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.parquet"])
def test_one_flipped_bit_anywhere_is_found(prefix: Path, suffix: str):
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
def test_a_missing_file_is_named(prefix: Path, suffix: str):
    path = prefix.with_name(prefix.name + suffix)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}.*not found"):
        verify(prefix)


def test_metadata_must_fit_the_index(prefix: Path):
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


def test_ids_must_be_below_the_vocabulary(prefix: Path):
    edit_manifest(prefix, lambda manifest: manifest["tokenizer"].update(vocab_size=100))
    with pytest.raises(UserError, match="outside the tokenizer's vocabulary of 100"):
        verify(prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(tokens=1), "says 1 tokens, but the index has"),
        (lambda manifest: manifest.pop("files"), "a field is missing or wrong"),
        (lambda manifest: manifest.update(format="other"), "is no corpus manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(prefix: Path, change, message: str):
    edit_manifest(prefix, change)
    with pytest.raises(UserError, match=message):
        verify(prefix)


def test_inspect_works_without_a_manifest(prefix: Path):
    assert decode_sample(prefix, 1) == TEXTS[1] + "<|endoftext|>"
    manifest_path(prefix).unlink()
    found = inspect_corpus(prefix)
    assert (found["sequences"], found["documents"], found["manifest"]) == (3, 3, None)
    assert decode_sample(prefix, 1).split()[-1] == "0"
    with pytest.raises(UserError, match="give one of 0 to 2"):
        decode_sample(prefix, 3)


def test_another_tokenizer_is_not_used_to_decode(prefix: Path):
    edit_manifest(prefix, lambda manifest: manifest["tokenizer"].update(fingerprint="xxh3:0"))
    with pytest.raises(UserError, match="is not the tokenizer that made"):
        decode_sample(prefix, 0)


def test_commands(prefix: Path, command):
    assert command("verify", prefix).stdout.startswith("verify: 1 corpora are whole, 3 sequences")
    assert json.loads(command("inspect", prefix, "--json").stdout)["lengths"]["100%"] > 1
    path = prefix.with_name(prefix.name + ".bin")
    path.write_bytes(path.read_bytes()[:-1])
    failed = command("verify", prefix)
    assert failed.returncode == 2
    assert str(path) in failed.stderr
    assert failed.stderr.count("\n") == 1
