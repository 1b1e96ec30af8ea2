"""Training of linear classifiers: the same bytes twice, and a classifier that tells its classes apart."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import fasttext
import pytest

from data_tools.scores.parse import parse_scorer
from data_tools.scores.train_linear import NEGATIVE, POSITIVE, train_linear
from data_tools.scores.training import TrainOptions
from megatron_kaiyuan.errors import UserError
from tests.data_tools.scores.real_texts import batch_of, real_texts

CODE = [
    text[start : start + 800] for text in real_texts(60)[16:] for start in range(0, 4000, 800) if text[start:].strip()
]
PROSE = [
    f"On the {number} day the {noun} of the {place} went home and said that nothing would be as it was before. " * 3
    for number in ("first", "second", "third", "fourth", "last")
    for noun in ("king", "baker", "daughter", "miller", "judge", "sailor")
    for place in ("town", "village", "island", "valley")
]
SMALL = {"dim": 8, "buckets": 2000, "epochs": 5}


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        counts = train_linear(PROSE, CODE, tmp_path / name, seed=seed, **SMALL)
        assert counts["positives"] == len(PROSE) and counts["negatives"] == len(CODE) and counts["words"] > 1000
    raw = [(tmp_path / name).read_bytes() for name in ("one", "two", "three")]
    assert raw[0] == raw[1] != raw[2]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three"}


def test_the_scorer_tells_held_out_documents_apart(tmp_path: Path) -> None:
    train_linear(PROSE[::2], iter(CODE[::2]), tmp_path / "model.bin", **SMALL)
    scorer = parse_scorer(f"linear={tmp_path / 'model.bin'}")
    good = scorer.score(batch_of(PROSE[1::2]))["linear"].to_pylist()
    bad = scorer.score(batch_of(CODE[1::2]))["linear"].to_pylist()
    assert min(good) > 0.5 and sum(score < 0.5 for score in bad) > 0.95 * len(bad)
    assert sorted(fasttext.load_model(str(tmp_path / "model.bin")).labels) == sorted([POSITIVE, NEGATIVE])


def test_words_that_mean_something_to_the_library_are_left_out(tmp_path: Path) -> None:
    odd = ["good __label__lq words </s> more\0words\nand lines", "__label__hq", ""]
    counts = train_linear(odd, ["other words", "  "], tmp_path / "model.bin", **SMALL)
    assert (counts["positives"], counts["negatives"]) == (1, 1)
    words = fasttext.load_model(str(tmp_path / "model.bin")).words
    assert set(words) == {"</s>", "good", "words", "more", "and", "lines", "other"}


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for positives, negatives, what in (([], CODE, "positives"), (PROSE, ["", " \n"], "negatives")):
        with pytest.raises(UserError, match=f"no {what} with text; name files"):
            train_linear(positives, negatives, tmp_path / "model.bin", **SMALL)
    with pytest.raises(UserError, match="fastText cannot train this classifier"):
        train_linear(PROSE, CODE, tmp_path / "model.bin", dim=8, epochs=5, learning_rate=1e30, buckets=2000)
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(UserError, match=r"training a linear classifier needs the package 'fasttext'.*\[scores\]"):
        train_linear(PROSE, CODE, tmp_path / "model.bin", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 10**11),
        ("epochs", 0),
        ("word_ngrams", 101),
        ("buckets", 2**31),
        ("seed", -1),
        ("learning_rate", math.nan),
    ],
)
def test_numbers_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^--{field.replace('_', '-')} {value}: must be between "):
        TrainOptions(**{field: value})  # type: ignore[arg-type]
