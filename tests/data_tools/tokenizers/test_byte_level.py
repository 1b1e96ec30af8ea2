"""A fast engine gets a tokenizer.json only if it implements all of it: any variant is refused or keeps its ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from data_tools.tokenizers.byte_level import unsupported_property
from data_tools.tokenizers.engines import Unsupported, build
from data_tools.tokenizers.tiktoken_files import KNOWN
from data_tools.tokenizers.tokenizer_formats import open_reference
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.tokenizer_trial import is_panic

pytest.importorskip("gigatoken")

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
PIECES = ["a", "b", "ab", "c", "cat", "Cat", "é", "e\u0301", "中", " ", "  ", "\n", ".", "1", "<", "|", ">", "don't"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": KNOWN["qwen"].pattern}, "behavior": "Isolated", "invert": False}
MERGES = [
    ["a", "b"],
    ["c", "a"],
    ["ca", "t"],
    ["Ġ", "a"],
    ["Ġ", "cat"],
    ["ab", "a"],
    ["a", "t"],
    ["Ã", "©"],
    ["Ġ", "Ġ"],
]


def small_content() -> dict[str, Any]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *("".join(pair) for pair in MERGES)]
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": copy.deepcopy(MERGES)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": dict(BYTE_LEVEL),
        "post_processor": None,
        "decoder": dict(BYTE_LEVEL),
        "model": model,
    }


def add_token(content: dict[str, Any], text: str, **flags: bool) -> None:
    vocabulary, added = content["model"]["vocab"], content["added_tokens"]
    new = len(vocabulary) + sum(token["content"] not in vocabulary for token in added)
    added.append({"id": vocabulary.get(text, new), "content": text, **FLAGS, **flags})


@st.composite
def variants(draw: st.DrawFn) -> dict[str, Any]:
    """A sound tokenizer.json with added tokens of any flags, and now and then something else that is odd."""
    content = small_content()
    normal = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    content["normalizer"] = draw(st.sampled_from([None, None, {"type": "NFC"}, normal, {"type": "Lowercase"}]))
    if draw(st.booleans()):
        last = {**BYTE_LEVEL, "use_regex": draw(st.sampled_from([False, False, True]))}
        split = {**SPLIT, **draw(st.sampled_from([{}, {}, {"behavior": "Removed"}, {"invert": True}]))}
        digits = [{"type": "Digits", "individual_digits": True}] if draw(st.integers(0, 5)) == 5 else []
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*digits, split, last]}
    elif draw(st.integers(0, 3)) == 3:
        odd = draw(st.sampled_from([{"use_regex": False}, {"add_prefix_space": True}]))
        content["pre_tokenizer"].update(odd)
    content["model"]["ignore_merges"] = draw(st.booleans())
    odd_model: dict[str, Any] = draw(
        st.sampled_from([{}, {}, {}, {"end_of_word_suffix": "b"}, {"continuing_subword_prefix": "a"}, {"dropout": 0.5}])
    )
    content["model"].update(odd_model)
    pieces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
    flag = st.sampled_from([False, False, False, True])
    for text in draw(st.lists(pieces, max_size=4, unique=True)):
        add_token(content, text, **{name: draw(flag) for name in FLAGS})
    return content


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variant") / "tokenizer.json"


def refused_or_equal(path: Path, content: dict[str, Any], texts: list[str]) -> bool:
    """Whether the engine takes the file; if it does, its ids must be the library's.

    Where the library panics ("AddedVocabulary bad split", tokens within tokens) there are none to compare with.
    """
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        reference = open_reference(path)
        expected = reference.encode(texts)
        found = build("gigatoken", reference).encode(texts)
    except BaseException as error:
        if isinstance(error, (Unsupported, UserError)) or is_panic(error):
            return False
        raise
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    return True


def with_tokens(*tokens: tuple[str, dict[str, bool]]) -> dict[str, Any]:
    content = small_content()
    for text, flags in tokens:
        add_token(content, text, **flags)
    return content


@settings(deadline=None, max_examples=300)
@example(with_tokens(("cat", {"single_word": True})), [["cat", "c"]])
@example(with_tokens(("<", {"special": True}), ("<a", {})), [["<", "a"]])
@example(with_tokens(("a<", {"special": True}), ("<b", {})), [["a", "<", "b"]])
@example(with_tokens(("ab", {}), ("bc", {"normalized": True})), [["ab", "c"]])
@given(variants(), st.lists(st.lists(st.sampled_from(PIECES), max_size=8), min_size=1, max_size=12))
def test_any_variant_is_refused_or_keeps_its_ids(path: Path, content: dict[str, Any], texts: list[list[str]]) -> None:
    added = [token["content"] for token in content["added_tokens"]]
    plain = ["".join(parts) for parts in texts]
    texts_ = [*plain, *(f"{text}{token}{text} {token} {token}" for text in plain for token in added)]
    refused_or_equal(path, content, texts_)


def test_the_variants_that_are_meant_to_be_taken_are(path: Path) -> None:
    texts = ["a cat", "cats <think> don't 12  \n", "é中"]
    assert refused_or_equal(path, small_content(), texts)
    qwen = with_tokens(("<|end|>", {"special": True, "lstrip": True}), ("<think>", {}))
    byte_level = {**BYTE_LEVEL, "use_regex": False}
    qwen |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, byte_level]}, "normalizer": {"type": "NFC"}}
    del qwen["truncation"], qwen["model"]["ignore_merges"]
    assert refused_or_equal(path, qwen, texts)


def of_model(**change: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["model"].update(change)


def of_token(text: str = "cat", **flags: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: add_token(content, text, **flags)


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda content: content.update(new_key=1), "new_key"),
        (lambda content: content.update(version="2.0"), "version: '2.0'"),
        (lambda content: content.update(normalizer={"type": "NFC", "more": 1}), "normalizer"),
        (lambda content: content.update(normalizer={"type": "NFKC"}), "normalizer"),
        (lambda content: content.update(pre_tokenizer=None), "pre_tokenizer: None"),
        (lambda content: content["pre_tokenizer"].update(more=1), "pre_tokenizer.more"),
        (lambda content: content.update(post_processor={"type": "New"}), "post_processor"),
        (of_model(type="Unigram"), "model.type: 'Unigram'"),
        (of_model(byte_fallback=True), "model.byte_fallback: True"),
        (of_model(dropout=0.1), "model.dropout: 0.1"),
        (of_model(cap=5), "model.cap"),
        (lambda content: content["model"]["vocab"].pop("z"), "model.vocab"),
        (lambda content: content["model"]["vocab"].update(cat=2**32 - 1), "model.vocab"),
        (of_token(single_word=True), "added token's single_word: True ('cat')"),
        (of_token(lstrip=True), "added token's lstrip: True ('cat')"),
        (of_token(rstrip=True), "added token's rstrip: True ('cat')"),
        (of_token(more=True), "added token's more ('cat')"),
    ],
)
def test_what_is_not_allowed_is_named(change: Callable[[dict[str, Any]], Any], odd: str) -> None:
    content = small_content()
    assert unsupported_property(content) is None
    change(content)
    assert unsupported_property(content) == odd


def test_an_added_token_outside_the_normal_form_is_named() -> None:
    content = with_tokens(("e\u0301", {}))
    assert unsupported_property(content) is None
    content["normalizer"] = {"type": "NFC"}
    assert "not in normal form C" in str(unsupported_property(content))
