"""Language identification on sentences of known languages, and by a fastText model."""

from __future__ import annotations

from pathlib import Path

import fasttext
import pytest

from data_tools.scores.parse import parse_scorer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import batch_of

# Article 1 of the Universal Declaration of Human Rights.
ARTICLES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są obdarzeni rozumem.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا.",
}


def test_the_packaged_model_knows_common_languages() -> None:
    scorer = parse_scorer("language")
    scores = scorer.score(batch_of(list(ARTICLES.values())))
    assert scores["language"].to_pylist() == list(ARTICLES)
    assert all(0.4 < score <= 1 for score in scores["language_score"].to_pylist())
    assert {name: column.type for name, column in scores.items()} == scorer.columns
    assert scorer.identity()["py3langid"]


def test_text_without_letters_has_no_language() -> None:
    scores = parse_scorer("language,name=tongue").score(
        batch_of([None, "", "12:30 + 5 = ?", "Guten Morgen, liebe Leute"])
    )
    assert scores["tongue"].to_pylist() == [None, None, None, "de"]
    assert [score is None for score in scores["tongue_score"].to_pylist()] == [True, True, True, False]


def test_only_the_first_characters_are_read() -> None:
    text = ARTICLES["de"] + ARTICLES["ru"] * 20
    language = {
        setting: parse_scorer(f"language,characters={setting}").score(batch_of([text]))["language"][0].as_py()
        for setting in (len(ARTICLES["de"]), 0)
    }
    assert list(language.values()) == ["de", "ru"]


def test_a_fasttext_model_gives_its_most_probable_label(tmp_path: Path) -> None:
    lines = [f"__label__{code} {text}" for code, text in ARTICLES.items()] * 20
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = fasttext.train_supervised(
        str(tmp_path / "lines.txt"), minn=2, maxn=3, dim=8, bucket=2000, epoch=20, lr=1.0, thread=1, verbose=0
    )
    model.save_model(str(tmp_path / "model.bin"))
    texts = list(ARTICLES.values())
    scores = parse_scorer(f"language={tmp_path / 'model.bin'}").score(batch_of([*texts, None, "12"]))
    assert scores["language"].to_pylist() == [*ARTICLES, None, None]
    labels, probabilities = model.predict(texts)
    assert [label.removeprefix("__label__") for (label,) in labels] == list(ARTICLES)
    for score, (probability,) in zip(scores["language_score"].to_pylist(), probabilities, strict=False):
        assert score == pytest.approx(probability, abs=1e-4)
    for labels in (("hq", "lq"), ("hq", "rest"), ("news", "forum", "en")):
        other = "\n".join(f"__label__{label} {text}" for label in labels for text in texts)
        (tmp_path / "lines.txt").write_text(other + "\n", encoding="utf-8")
        classifier = fasttext.train_supervised(str(tmp_path / "lines.txt"), dim=2, epoch=1, thread=1, verbose=0)
        classifier.save_model(str(tmp_path / "other.bin"))
        with pytest.raises(UserError, match=r"other\.bin: tells no languages apart, its labels are __label__.*linear="):
            parse_scorer(f"language={tmp_path / 'other.bin'}").score(batch_of([]))
    with pytest.raises(UserError, match="not a fastText model"):
        parse_scorer(f"language={tmp_path / 'lines.txt'}").score(batch_of([]))
