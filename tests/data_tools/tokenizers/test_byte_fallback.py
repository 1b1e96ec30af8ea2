"""A byte-fallback BPE written as byte-level BPE gives the same ids: by one library twice, and by a faster engine."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_tools.tokenizers.byte_fallback import as_byte_level
from data_tools.tokenizers.engines import Gigatoken, Unsupported
from data_tools.tokenizers.tokenizer import TextTokenizer
from data_tools.tokenizers.tokenizer_formats import HuggingFace, join_arrays
from data_tools.tokenizers.train_tokenizer import train_tokenizer

# Characters of one to four bytes; of each length some that begin alike.
LETTERS = "ab <é\u00ec中丮丯乀ก\U0001f600\U0001f601\U00020000"
# More that begin like them, and are not learnt.
OTHERS = "ëž乁为ข\U0001f602\U00020001\x00~"


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    drawn = random.Random(5)
    words = ["".join(drawn.choices(LETTERS.replace(" ", ""), k=drawn.randint(2, 6))) for _ in range(150)]
    texts = [" ".join(drawn.choices(words, k=40)) for _ in range(80)]
    return train_tokenizer(lambda: iter(texts), 560)


@pytest.fixture(scope="module")
def reference(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> HuggingFace:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(trained))
    return HuggingFace(path)


TEXTS = st.lists(st.text(st.one_of(st.sampled_from(LETTERS + OTHERS), st.characters(exclude_categories=["Cs"]))))


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS)
def test_the_same_library_gives_the_same_ids(reference: HuggingFace, texts: list[str]) -> None:
    translation = as_byte_level(reference.content)
    other = Tokenizer.from_str(json.dumps({**translation.content, "added_tokens": []}))
    found = join_arrays([np.array(other.encode(text).ids, np.uint32) for text in texts])
    ids, lengths = translation.own(found)
    expected, expected_lengths = reference.encode(texts)
    assert ids.tolist() == expected.tolist() and lengths.tolist() == expected_lengths.tolist()


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS)
def test_the_faster_engine_gives_the_same_ids(reference: HuggingFace, texts: list[str]) -> None:
    ids, lengths = Gigatoken(reference).encode(texts)
    expected, expected_lengths = reference.encode(texts)
    assert ids.tolist() == expected.tolist() and lengths.tolist() == expected_lengths.tolist()


def test_the_faster_engine_wins(tokenizer_path: Path, harvested: Path) -> None:
    tokenizer = TextTokenizer(tokenizer_path)
    lines = [line for path in sorted(harvested.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert tokenizer.prove([json.loads(line)["text"] for line in lines]).startswith("engine: gigatoken, its ids equal")


def _ignore_merges(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True


def _merge_a_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<0x41>a"] = 9999
    content["model"]["merges"].append(["<0x41>", "a"])


def _merge_twice(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(content["model"]["merges"][0])


def _lose_a_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["<0x80>"]


def _find_a_token(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["special"] = False


def _prepend(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Prepend", "prepend": "▁"}


def _metaspace(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_ignore_merges, "ignore_merges"),
        (_merge_a_byte, "a merge of '<0x41>'"),
        (_merge_twice, "there twice"),
        (_lose_a_byte, "without '<0x80>'"),
        (_find_a_token, "added tokens that texts may hold"),
        (_prepend, "normalizer"),
        (_metaspace, "prepend_scheme"),
    ],
)
def test_what_cannot_be_written_so_is_named(
    trained: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], name: str
) -> None:
    content = copy.deepcopy(trained)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(Unsupported, match=name):
        Gigatoken(HuggingFace(tmp_path / "tokenizer.json"))
