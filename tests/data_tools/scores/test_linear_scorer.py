"""Our application of fastText models against the library's, on real text; damaged models."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _scores
from data_tools.scores.fasttext_model import FastTextModel
from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.mutations import mutate
from tests.helpers.files.real_texts import batch_of, real_texts

Trained = Callable[..., Path]
ROUNDS = [400, pytest.param(6000, marks=pytest.mark.slow)]
MODELS: dict[str, dict[str, Any]] = {
    "softmax of two labels": {"wordNgrams": 2, "dim": 20, "bucket": 5000, "lr": 1.0, "epoch": 8},
    "one label": {"labels": 1, "wordNgrams": 2, "dim": 5, "bucket": 100},
    "words alone": {"wordNgrams": 1, "dim": 8},
    "trigrams and subwords": {"wordNgrams": 3, "minn": 2, "maxn": 4, "dim": 16, "bucket": 3000, "lr": 1.0},
    "more labels than columns": {"labels": 30, "wordNgrams": 2, "minn": 1, "maxn": 2, "dim": 4, "bucket": 1000},
    "hierarchical softmax": {"labels": 7, "loss": "hs", "wordNgrams": 2, "dim": 16, "bucket": 1000, "lr": 1.0},
    "hierarchical, many labels": {"labels": 40, "loss": "hs", "dim": 4, "minn": 2, "maxn": 3, "bucket": 500},
    "one against all": {"labels": 3, "loss": "ova", "wordNgrams": 2, "dim": 8, "bucket": 1000},
    "negative sampling": {"labels": 3, "loss": "ns", "wordNgrams": 2, "dim": 8, "bucket": 1000},
    "quantised": {"wordNgrams": 2, "dim": 15, "bucket": 2000, "quantise": {"qnorm": False, "dsub": 2}},
    "quantised and pruned": {"wordNgrams": 2, "minn": 2, "maxn": 3, "dim": 16, "bucket": 4000,
                             "quantise": {"qnorm": True, "cutoff": 1500, "dsub": 3}},
    "quantised output": {"labels": 300, "wordNgrams": 2, "dim": 8, "bucket": 1000,
                         "quantise": {"qnorm": True, "qout": True}},
}  # fmt: skip
STEP = 1 / 32  # of the library's sigmoid


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            made[name] = train_model(folder, **MODELS[name])
        return made[name]

    return train


def train_model(folder: Path, labels: int = 2, quantise: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Random labels with a bias by length, so that probabilities spread."""
    drawn = random.Random(0)
    names = ["__label__hq", "__label__lq", *(f"__label__{index}" for index in range(2, labels))][:labels]
    lines = [f"{names[index % labels]} filler words of label {index % labels}" for index in range(2 * labels)]
    for text in real_texts(80)[16:]:
        words = text.split()
        for start in range(0, min(len(words), 1500), 50):
            label = names[int(drawn.paretovariate(1.0) - 1) % labels]
            lines.append(f"{label} {' '.join(words[start : start + 50])}")
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = fasttext.train_supervised(str(folder / "lines.txt"), thread=1, verbose=0, **{"epoch": 4, **settings})
    path = folder / ("model.ftz" if quantise else "model.bin")
    if quantise:
        model.quantize(input=str(folder / "lines.txt"), retrain=False, verbose=0, **quantise)
    model.save_model(str(path))
    return path


def library_probabilities(path: Path, texts: list[str], labels: list[str]) -> np.ndarray:
    """Rows of NaN where the library cannot answer."""
    model = fasttext.load_model(str(path))
    found = np.full((len(texts), len(labels)), np.nan)
    for row, text in enumerate(texts):
        try:
            names, probabilities = model.predict(text.replace("\n", " "), k=-1)
        except RuntimeError:  # it divides by no words
            continue
        for name, probability in zip(names, probabilities, strict=True):
            found[row, labels.index(name)] = probability
    return found


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_the_librarys(trained: Trained, name: str) -> None:
    path = trained(name)
    model = FastTextModel(path)
    texts = list(real_texts(120))
    ours = model.probabilities(pa.array(texts, type=pa.large_string()))
    theirs = library_probabilities(path, texts, model.labels)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    difference = np.abs(ours - theirs)
    if MODELS[name].get("loss") in ("ova", "ns"):
        # A logit at the edge of a step of the library's sigmoid may fall on its other side.
        assert np.nanmax(difference) < STEP / 4 + 1e-4
        difference = difference[difference < 1e-4]
        assert difference.size > 0.98 * ours.size
    assert np.nanmax(difference) <= 1e-4
    assert np.nanmin(ours) >= 0 and np.nanmax(ours) <= 1
    if MODELS[name].get("loss") not in ("ova", "ns"):
        assert np.allclose(ours.sum(axis=1)[~np.isnan(ours[:, 0])], 1)
    if name == "softmax of two labels":  # the comparison says something
        assert np.nanstd(ours[:, 0]) > 0.1 and np.nanmean(difference) < 2e-5


WORDS = ("import", "the", "</s>", "__label__hq", "__label__x", "é", "\0", "\n", "\t", "\x0b", "<", ">")


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=20
    )
)
def test_any_text_is_scored_as_the_library_does(trained: Trained, parts: list[str]) -> None:
    path, text = trained("trigrams and subwords"), " ".join(parts)
    model = FastTextModel(path)
    ours = model.probabilities(pa.array([text], type=pa.large_string()))
    theirs = library_probabilities(path, [text], model.labels)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_scorer(trained: Trained) -> None:
    path = trained("softmax of two labels")
    scorer = parse_scorer(f"linear={path}")
    texts = [*real_texts(30), None]
    together = scorer.score(batch_of(texts))["linear"]
    assert together.type == pa.float64() and together[-1].as_py() is None
    alone = [scorer.score(batch_of([text]))["linear"][0].as_py() for text in texts]
    assert together.to_pylist() == alone
    assert scorer.score(batch_of(texts).slice(3, 4))["linear"].to_pylist() == alone[3:7]
    other = parse_scorer(f"linear={path},label=__label__lq,name=low").score(batch_of(texts))["low"]
    for high, low in zip(together.to_pylist()[:-1], other.to_pylist()[:-1], strict=True):
        assert math.isclose(high + low, 1)
    assert scorer.score(batch_of([]))["linear"].to_pylist() == []
    with pytest.raises(UserError, match=r"no label '__label__no'; add ,label=... with one of __label__hq, __label__lq"):
        parse_scorer(f"linear={path},label=__label__no").score(batch_of([]))


def test_a_text_that_the_model_knows_nothing_of_has_no_score(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("__label__hq known\n__label__lq known\n" * 5)
    model = fasttext.train_supervised(str(tmp_path / "lines.txt"), minCount=1, verbose=0, thread=1, dim=4)
    model.save_model(str(tmp_path / "model.bin"))
    raw = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(raw.replace(b"</s>\0", b"<!s>\0"))  # a model trained without line ends
    scores = parse_scorer(f"linear={tmp_path / 'model.bin'}").score(batch_of(["known", "unknown", ""]))["linear"]
    assert [score is None for score in scores.to_pylist()] == [False, True, True]


def test_what_is_not_a_model_is_one_line(tmp_path: Path, trained: Trained) -> None:
    raw = trained("softmax of two labels").read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "not a fastText model"),
        "text": (b"hello, this is text\n" * 9, "not a fastText model"),
        "future": (raw[:4] + struct.pack("<i", 13) + raw[8:], "has the fastText format 13; 11 and 12 are read"),
        "vectors": (raw[:36] + struct.pack("<i", 2) + raw[40:], "holds word vectors, not a classifier"),
        "cut": (raw[:-1], "ends early"),
        "longer": (raw + b"x", "has bytes after its end"),
        "nan": (raw[:-4] + struct.pack("<f", math.nan), "a weight is not a number"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            FastTextModel(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and message in str(caught.value), name
        assert "\n" not in str(caught.value)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot be read"):
            FastTextModel(path)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", ["hierarchical softmax", "quantised and pruned"])
def test_a_damaged_model_is_refused_or_scores(tmp_path: Path, trained: Trained, name: str, rounds: int) -> None:
    raw = trained(name).read_bytes()
    texts = pa.array(list(real_texts(18)), type=pa.large_string())
    refused = 0
    for seed in range(rounds):
        # The first 200 bytes hold every setting and size but those of the matrices.
        head = random.Random(seed).choice((60, 200, 3000, len(raw)))
        (tmp_path / "model").write_bytes(mutate(raw[:head], seed) + raw[head:])
        try:
            model = FastTextModel(tmp_path / "model")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            probabilities = model.probabilities(texts)
            assert probabilities.shape == (18, len(model.labels))
            assert not np.any((probabilities < 0) | (probabilities > 1))
    assert refused > rounds / 4


def test_offsets_must_fit(trained: Trained) -> None:
    model = _scores.LinearModel(bytes(trained("words alone")))
    data = np.zeros(4, dtype=np.uint8)
    for offsets in ([], [0, 5], [-1, 2], [3, 2]):
        with pytest.raises(IndexError):
            model.probabilities(np.array(offsets, dtype=np.int64), data)
        with pytest.raises(IndexError):
            _scores.rule_measures(bytes(0x110000), np.array(offsets, dtype=np.int64), data)
    with pytest.raises(ValueError, match="class for each code point"):
        _scores.rule_measures(b"", np.array([0, 4], dtype=np.int64), data)
