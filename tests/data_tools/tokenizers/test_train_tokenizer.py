"""`kaiyuan-data tokenizer train`: what it reads, long runs without a cut, and which files it may write over."""

from __future__ import annotations

import gzip
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.tokenizers.fit import measure
from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.train_tokenizer import train_and_save
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import read_rows, write_rows


def text_file(path: Path, seed: int) -> Path:
    """Words of random letters, enough of them to fill a small vocabulary."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(3, 8))) for _ in range(200)]
    return write_rows(path, [{"text": " ".join(drawn.choices(words, k=60))} for _ in range(60)])


def test_a_tokenizer_is_replaced_only_by_force_and_only_where_it_was_trained(tmp_path: Path) -> None:
    first, second = text_file(tmp_path / "a.jsonl", 3), text_file(tmp_path / "b.jsonl", 5)
    output = tmp_path / "tokenizer" / "tokenizer.json"
    train_and_save([first], "text", 520, output)
    once = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert once.keys() == {"tokenizer.json", "tokenizer_config.json", "tokenizer.manifest.json"}
    train_and_save([first], "text", 520, output)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == once
    for inputs, size in (([second], 520), ([first], 530)):
        with pytest.raises(UserError, match="holds a trained tokenizer already, made from something else"):
            train_and_save(inputs, "text", size, output)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == once
    train_and_save([first], "text", 530, output, force=True)
    assert TextTokenizer(output).vocab_size == 530


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.manifest.json"])
def test_files_of_the_user_are_refused_before_training(tmp_path: Path, name: str) -> None:
    """The text is too little for the vocabulary, so that training that began would fail otherwise."""
    text = write_rows(tmp_path.parent / f"{name}.jsonl", [{"text": "little"}])
    (tmp_path / name).write_text("{}")
    for force in (False, True):
        with pytest.raises(UserError, match=f"{name}: exists, and no record beside it"):
            train_and_save([text], "text", 520, tmp_path / "tokenizer.json", force)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "{}"
    with pytest.raises(UserError, match=r"names the file to write; write .*tokenizer\.json"):
        train_and_save([text], "text", 520, tmp_path)


@pytest.mark.parametrize("run", ["ACGT", "=", " ", "\n", "1", "中", "\u0301"])
def test_a_long_run_without_a_cut_takes_time_in_proportion_and_teaches_no_long_token(tmp_path: Path, run: str) -> None:
    """A million characters; their square would take many minutes."""
    path = text_file(tmp_path / "a.jsonl", 3)
    drawn = random.Random(1)
    letters = "".join(drawn.choices(run, k=1_000_000))
    whole = write_rows(tmp_path / "b.jsonl", [*read_rows(path), {"text": f"one {letters} two"}])
    began = time.process_time()
    train_and_save([whole], "text", 560, tmp_path / "tokenizer.json")
    assert time.process_time() - began < 30
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    assert max(map(len, tokenizer.vocabulary)) <= 256
    assert tokenizer.decode(tokenizer.encode_batch([letters])[0]) == letters


def test_every_format_that_preprocessing_reads_can_be_learnt_from(tmp_path: Path) -> None:
    rows = read_rows(text_file(tmp_path / "a.jsonl", 3))
    plain = "".join(f"{row['text']}\n" for row in rows)
    (tmp_path / "a.txt").write_text(plain)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    zipped = pa.CompressedOutputStream(str(tmp_path / "a.txt.zst"), "zstd")
    with zipped:
        zipped.write(plain.encode())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    names = ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet"]
    outputs = [tmp_path / name.replace(".", "_") / "tokenizer.json" for name in names]
    for name, output in zip(names, outputs, strict=True):
        train_and_save([tmp_path / name], "text", 520, output)
        assert str(measure(output, [tmp_path / name])[-1]) == str(measure(output, [tmp_path / "a.jsonl"])[-1])
    assert len({output.read_bytes() for output in outputs}) == 1


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet:2: field 'text' is not text"):
        train_and_save([tmp_path / "a.parquet"], "text", 520, tmp_path / "tokenizer.json")
