"""Training of linear classifiers: the same bytes twice, and a classifier that tells its classes apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fasttext
import pytest

from data_tools.scores.parse import parse_scorer
from data_tools.scores.train_linear import NEGATIVE, POSITIVE, train_linear
from data_tools.scores.training import TrainOptions, train_scorer
from data_tools.steps.datasets import reading_settings
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of, real_texts

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
    with pytest.raises(UserError, match=r"^fastText cannot train this classifier.*try a lower --learning-rate"):
        train_linear(PROSE, CODE, tmp_path / "model.bin", dim=8, epochs=50, learning_rate=100.0, buckets=2000)
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(
        UserError,
        match=r"training a linear classifier needs the package 'fasttext'.*pip install .*'fasttext-community>=",
    ):
        train_linear(PROSE, CODE, tmp_path / "model.bin", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("learning_rate", value) for value in (float("nan"), float("inf"), -0.5, 0.0, 1e30)),
        *(("dim", value) for value in (0, 1 << 40)),
        *(("seed", value) for value in (-1, 1 << 31)),
        ("epochs", 0),
        ("buckets", -1),
        ("word_ngrams", 0),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_read(setting: str, value: Any, tmp_path: Path) -> None:
    option = f"--{setting.replace('_', '-')}"
    with pytest.raises(UserError, match=f"^{option} .*: must be "):
        train_scorer(["absent"], ["absent"], tmp_path / "m.bin", TrainOptions(**{setting: value}), reading_settings())
    assert list(tmp_path.iterdir()) == []


def test_few_documents_make_a_small_file_and_the_line_says_its_size(tmp_path: Path) -> None:
    for name, texts in (("good", PROSE), ("bad", CODE)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sides = [str(tmp_path / "good.jsonl")], [str(tmp_path / "bad.jsonl")]
    line = train_scorer(*sides, tmp_path / "m.bin", TrainOptions(), reading_settings())
    words = sum(len(text.encode().split()) for text in (*PROSE, *CODE))
    record = json.loads((tmp_path / "m.bin.json").read_text())
    size = (tmp_path / "m.bin").stat().st_size
    assert record["buckets"] == words // 4 and size < 20e6
    assert f"{words // 4:,} buckets, {size / 1e6:.1f} MB" in line
    scorer = parse_scorer(f"linear={tmp_path / 'm.bin'}")
    assert min(scorer.score(batch_of(PROSE))["linear"].to_pylist()) > 0.5


def test_a_file_on_both_sides_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both.txt").write_text("some words\n")
    (tmp_path / "more.txt").write_text("other words\n")
    (tmp_path / "link.txt").symlink_to("both.txt")
    for other in ("both.txt", "link.txt"):
        with pytest.raises(UserError, match=rf"{other}: is in --positives and in --negatives"):
            train_scorer(
                [str(tmp_path / "both.txt"), str(tmp_path / "more.txt")],
                [str(tmp_path / other)],
                tmp_path / "m.bin",
                TrainOptions(),
                reading_settings(),
            )
    assert not (tmp_path / "m.bin").exists()
