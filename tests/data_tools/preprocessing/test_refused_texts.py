"""Texts that a tokenizer's library gives up on: encoded in another way with the same ids, or bad rows."""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.tokenizers.tiktoken_files import KNOWN
from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.tokenizer_formats import Tiktoken
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

BLANKS = " " * 1_000_000
# A character that no Unicode assigns, whatever its age: of the last row of a plane, and no noncharacter.
UNASSIGNED = "\U0003fffd"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiktoken_file(folder: Path, pattern: str, pairs: bool = False) -> Path:
    """Ranks of every byte, and of every two with `pairs`, so that ids show where a text is cut."""
    tokens = [bytes([one]) for one in range(256)]
    tokens += [bytes([one, two]) for one in range(256) for two in range(256)] if pairs else []
    path = folder / "x.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    about = {"pattern": pattern, "special_tokens": {"<|endoftext|>": len(tokens)}}
    path.with_name("x.tiktoken.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("pattern", [LLAMA3, "qwen", "cl100k_base"])
@pytest.mark.parametrize("word", ["begin", "cafe\u0301"])
def test_a_million_blanks_are_a_document_like_others(tmp_path: Path, pattern: str, word: str) -> None:
    tokenizer = tiktoken_file(tmp_path, pattern)
    text = f"{word}{BLANKS}end"
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one"}, {"text": text}])
    preprocess([path], tmp_path / "x", Settings(tokenizer))
    corpus = IndexedCorpus(tmp_path / "x_text_document")
    assert [corpus.tokens(i).tolist() for i in range(2)] == [[*b"one", 256], [*text.encode(), 256]]


def test_a_text_that_no_library_encodes_is_a_bad_row(tmp_path: Path) -> None:
    tokenizer = tiktoken_file(tmp_path, LLAMA3)
    refused = f"{UNASSIGNED}{BLANKS}end"
    rows = [{"text": "one", "other": "1", "score": 1}, {"text": "two", "other": refused, "score": 2}]
    rows += [{"text": refused, "other": "3", "score": 3}, {"text": "four", "other": "4", "score": 4}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    settings = Settings(tokenizer, ("text", "other"), ("score",))
    with pytest.raises(UserError, match=r"a\.jsonl:2: the tokenizer's library cannot encode 'other' \(.*stack size"):
        preprocess([path], tmp_path / "x", settings, max_bad_rows=0)
    totals = preprocess([path], tmp_path / "x", settings, max_bad_rows=2)
    assert sum(totals.skipped.values()) == 2
    for key, texts in (("text", ["one", "four"]), ("other", ["1", "4"])):
        corpus = IndexedCorpus(tmp_path / f"x_{key}_document")
        assert [bytes(corpus.tokens(i).tolist()[:-1]).decode() for i in range(len(corpus))] == texts
    listed = [json.loads(line) for line in (tmp_path / "x.bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == [2, 3]
    assert listed[1]["offset"] == sum(map(len, path.read_bytes().splitlines(keepends=True)[:2]))


@pytest.mark.parametrize("pattern", [LLAMA3, *(known.pattern for known in KNOWN.values())])
def test_pieces_are_those_of_the_library(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> None:
    reference = Tiktoken(tiktoken_file(tmp_path_factory.mktemp("ranks"), pattern, pairs=True))
    assigned = st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x3FFFF)
    near = st.sampled_from(
        [" ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\x1c", "'s", "'LL", "'ſ", "a", "A", "1", "½", "中", "."]
    )

    @given(text=st.lists(st.one_of(near, assigned)).map("".join))
    def check(text: str) -> None:
        assert np.array_equal(reference._encode_pieces(text, ValueError()), reference.encode([text])[0])

    check()


def test_a_failing_engine_leaves_the_text_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(tiktoken_file(tmp_path, "qwen"), engine="gigatoken")
    right = tokenizer.encode_batch(["one", "two"])

    def give_up(texts: list[str]) -> None:
        raise RuntimeError("a panic")

    monkeypatch.setattr(tokenizer._engine, "encode", give_up)
    assert tokenizer.encode_batch(["one", "two"]) == right
    assert unicodedata.category(UNASSIGNED) == "Cn"
