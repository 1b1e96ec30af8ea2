"""The tokenizer: any text comes back, and no text can spell a control token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from data_tools.tokenizers.tokenizer import END_OF_DOCUMENT, TextTokenizer
from data_tools.tokenizers.train_tokenizer import BYTE_TOKENS, train_tokenizer
from megatron_kaiyuan.errors import UserError
from tests.helpers.processes.command import Command


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_path)


@given(st.text() | st.lists(st.sampled_from(["<0x41>", "<0x", "41>", END_OF_DOCUMENT, "▁", " ", "\r\n", "中", "a"])))
@example("")
@example("▁ ▁▁ leading and trailing ▁ ")
@example("<0x41><0xE4><0xBD><0xA0> <0x0A>")
@example(f"before {END_OF_DOCUMENT} after{END_OF_DOCUMENT}")
@example("\x00\x01\x7f\ufeff\u2028\x85\r\r\n\t 　\U0010ffff\ufffd")
@example("你好，世界 𠮷 🙂‍↔️ e\u0301 ﬁ Å Å")
def test_any_text_comes_back(tokenizer: TextTokenizer, parts) -> None:
    text = "".join(parts)
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("append_eod", [False, True])
def test_flat_ids_are_those_of_each_text(tokenizer: TextTokenizer, append_eod: bool) -> None:
    texts = ["", "a b", "你好 𠮷", "", END_OF_DOCUMENT]
    tokens, lengths = tokenizer.encode_flat(texts, append_eod)
    end = [tokenizer.eod_id] if append_eod else []
    expected = [ids + end if ids else [] for ids in tokenizer.encode_batch(texts)]
    assert [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] == expected
    assert (tokens.dtype, lengths.dtype) == (np.uint16, np.int32)
    assert [len(part) for part in tokenizer.encode_flat([], append_eod)] == [0, 0]


def test_every_character_of_the_basic_plane_comes_back(tokenizer: TextTokenizer) -> None:
    text = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    parts = [text[at : at + 100] for at in range(0, len(text), 100)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(parts)] == parts


def test_an_unknown_character_becomes_its_bytes(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode_batch(["𠮷"])[0] == [1 + byte for byte in "𠮷".encode()]


def test_the_vocabulary_is_laid_out_as_promised(tokenizer_path: Path) -> None:
    content = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(1024))
    assert [vocabulary[token] for token in [END_OF_DOCUMENT, *BYTE_TOKENS]] == list(range(257))
    assert [token["content"] for token in content["added_tokens"]] == [END_OF_DOCUMENT]
    assert content["normalizer"] is None


def test_training_is_deterministic(harvested: Path) -> None:
    text = (harvested / "code.train.jsonl").read_text(encoding="utf-8")
    assert train_tokenizer(lambda: [text], 600) == train_tokenizer(lambda: [text], 600)


def test_transformers_loads_the_folder_and_agrees(tokenizer_path: Path, tokenizer: TextTokenizer) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer_path.parent)
    text = f"def f(x):  # 你好\n    return x ** 2 , x . y {END_OF_DOCUMENT}<0x41>"
    ids = tokenizer.encode_batch([text])[0]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == text
    assert (loaded.eos_token, loaded.eos_token_id) == (END_OF_DOCUMENT, tokenizer.eod_id)


def save_words(folder: Path, *words: str) -> Path:
    """Ids of the words are 10 apart, and the words with brackets are special."""
    path = folder / "tokenizer.json"
    content = json.loads(Tokenizer(models.WordLevel({word: 10 * i for i, word in enumerate(words)}, words[0])).to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [word for word in words if word[0] in "<["]
    content["added_tokens"] = [{"id": 10 * words.index(word), "content": word, **flags} for word in special]
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_end_of_a_document_is_found_or_named(tmp_path: Path) -> None:
    path = save_words(tmp_path, "a", "</s>", "[END]")
    assert TextTokenizer(path).eod_id == 10
    assert TextTokenizer(path).vocab_size == 21
    assert TextTokenizer(path, eod_token="[END]").eod_id == 20
    path.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[END]"}}))
    assert TextTokenizer(tmp_path).eod_id == 20
    with pytest.raises(UserError, match="--eod-token"):
        TextTokenizer(save_words(tmp_path, "a", "b"))


def test_an_end_that_a_text_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spells out 'b' would end the document there"):
        TextTokenizer(save_words(tmp_path, "a", "b"), eod_token="b")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: tokenizer not found"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match="not a readable"):
        TextTokenizer(tmp_path)
    (tmp_path / "sp.model").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"neither a tokenizer\.json, nor a sentencepiece model, nor a tiktoken file"):
        TextTokenizer(tmp_path / "sp.model")


@pytest.mark.parametrize(("size", "message"), [(300, "at least 512"), (5000, "yields only")])
def test_an_impossible_vocabulary_is_refused(size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(lambda: ["a few words only"], size)


def test_commands(harvested: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "new" / "tokenizer.json"
    inputs = sorted(harvested.glob("*.train.jsonl"))
    trained = command("tokenizer", "train", "--input", *inputs, "--vocab-size", 800, "--output", output)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith("tokenizer train: 800 tokens")
    shown = command("tokenizer", "inspect", output, *harvested.glob("*.heldout.jsonl"), "--json")
    fits = json.loads(shown.stdout)
    assert set(fits) == {"code", "math", "all"}
    assert 1 < fits["code"]["bytes_per_token"] < 6
