"""Special tokens that are entries of the model's vocabulary: no text gives their ids, and all other ids stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_tools.preprocessing.preprocess import Settings, preprocess
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

SPECIAL = ["<unk>", "</s>", "<pad>"]
WORDS = ["some", "words", "to", "learn", "from", "again", "and", "much", "more", "of", "the", "same"]
KINDS = ["unigram", "word_level", "word_piece"]


def trained(kind: str, path: Path) -> Path:
    """A tokenizer whose special tokens are entries of its model, as all of these models' trainers make it."""
    trainer: Any
    shared: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", **shared)
    elif kind == "word_level":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**shared)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordPieceTrainer(vocab_size=80, **shared)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 40, trainer)
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(request.param, tmp_path_factory.mktemp("special") / request.param / "tokenizer.json")


def test_the_end_that_is_spelt_out_is_text_and_all_other_ids_stay(path: Path) -> None:
    tokenizer, library = TextTokenizer(path), Tokenizer.from_file(str(path))
    assert [tokenizer.vocabulary[token] for token in SPECIAL] == [0, 1, 2] and tokenizer.eod_id == 1
    assert tokenizer.decode([1, 2]).split() == library.decode([1, 2], skip_special_tokens=False).split()

    @given(st.lists(st.sampled_from([*WORDS, *SPECIAL, "</", "s>", "other"])))
    def check(words: list[str]) -> None:
        ids = tokenizer.encode_batch([" ".join(words)])[0]
        assert not {1, 2} & set(ids)
        if not set(words) & set(SPECIAL):
            assert ids == library.encode(" ".join(words), add_special_tokens=False).ids

    check()


def test_a_corpus_is_made(path: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"text": "some words"}, {"text": "much </s> more"}])
    preprocess([rows], tmp_path / "x", Settings(path))
    corpus = IndexedCorpus(tmp_path / "x_text_document")
    assert [corpus.tokens(i).tolist().count(1) for i in range(2)] == [1, 1]


def test_an_end_that_stands_for_unknown_words_is_refused(tmp_path: Path) -> None:
    found = trained("word_level", tmp_path / "tok" / "tokenizer.json")
    with pytest.raises(UserError, match="not the one for unknown words"):
        TextTokenizer(found, "<unk>")
