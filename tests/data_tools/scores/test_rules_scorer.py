"""Rules: cases worked by hand, and every measure against a plain formulation of its definition."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _scores
from data_tools.scores.kinds.rules import RULES, _character_classes
from data_tools.scores.parse import parse_scorer
from data_tools.scores.scorer import text_memory, texts_of
from tests.helpers.files.real_texts import batch_of, real_texts

ENDS, WIDE_ENDS = ".!?\uff0e\u061f\u06d4\u0964", "。！？"
ENDS += WIDE_ENDS
QUOTES = "\"'”’»」』"
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "javascript",
)
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def lowered(text: str) -> str:
    return re.sub("[A-Z]+", lambda match: match[0].lower(), text)


def is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def word_of(token: str) -> str:
    while token and is_punctuation(token[0]):
        token = token[1:]
    while token and is_punctuation(token[-1]):
        token = token[:-1]
    return token


def sentences(line: str) -> int:
    marks = rf"[{re.escape(ENDS)}][{re.escape(ENDS + QUOTES)}]*"
    found = [
        match
        for match in re.finditer(marks, line)
        if match[0][0] in WIDE_ENDS + "．" or match.end() == len(line) or line[match.end()].isspace()
    ]
    return max(len(found), 1)


def repeats(items: list[str]) -> list[str]:
    seen: set[str] = set()
    return [item for item in items if item in seen or seen.add(item)]  # type: ignore[func-returns-value]


def top_ngram(tokens: list[str], length: int) -> int:
    counts = Counter(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
    if not counts:
        return 0
    gram, count = counts.most_common(1)[0]
    return len(" ".join(gram)) * count


def repeated_ngrams(tokens: list[str], length: int) -> int:
    seen: set[tuple[str, ...]] = set()
    at = total = 0
    while at + length <= len(tokens):
        gram = tuple(tokens[at : at + length])
        if gram in seen:
            total += len("".join(gram))
            at += length
        else:
            seen.add(gram)
            at += 1
    return total


def plain_measures(text: str) -> dict[str, float]:
    """The definitions of csrc/scores/rules.h, once more."""
    raw = text.split("\n")
    lines = [line.strip() for line in raw if line.strip()]
    blanks = [not line.strip() for line in raw]
    paragraphs = [
        "\n".join(part).strip()
        for part in ([raw[i] for i in range(a + 1, b)] for a, b in pairwise([-1, *np.flatnonzero(blanks), len(raw)]))
        if "".join(part).strip()
    ]
    paragraphs = ["\n".join(line.strip() for line in part.split("\n") if line.strip()) for part in paragraphs]
    tokens = text.split()
    words = [word for token in tokens if (word := word_of(token))]
    kept = [
        line
        for line in lines
        if len(line.split()) >= 5
        and line[-1] in ENDS + QUOTES
        and not line.endswith("...")
        and all(len(token) <= 1000 for token in line.split())
        and not any(phrase in lowered(line) for phrase in (*POLICY, "javascript"))
    ]
    repeated = sum(map(len, repeats(lines)))
    size = len(text)
    measures: dict[str, float] = {
        "c4_kept_lines": share(len(kept), len(lines)),
        "c4_sentences": sum(map(sentences, kept)),
        "c4_lorem_ipsum": float("lorem ipsum" in lowered(text)),
        "c4_curly_brackets": text.count("{") + text.count("}"),
        "gopher_words": len(words),
        "gopher_mean_word_length": share(sum(map(len, words)), len(words)),
        "gopher_hashes_per_word": share(text.count("#"), len(words)),
        "gopher_ellipses_per_word": share(text.count("...") + text.count("…"), len(words)),
        "gopher_bullet_lines": share(sum(line[0] in "-*•‣–▪■◦" for line in lines), len(lines)),
        "gopher_ellipsis_lines": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "gopher_alphabetic_words": share(sum(any(c.isalpha() for c in word) for word in words), len(words)),
        "gopher_stop_words": len(STOP_WORDS & {lowered(word) for word in words}),
        "repetition_lines": share(len(repeats(lines)), len(lines)),
        "repetition_line_characters": share(repeated, size),
        "repetition_paragraphs": share(len(repeats(paragraphs)), len(paragraphs)),
        "fineweb_ended_lines": share(sum(line[-1] in ENDS + QUOTES + "…" for line in lines), len(lines)),
        "fineweb_repeated_characters": share(repeated, size - text.count("\n")),
        "fineweb_short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "characters": size,
        "lines": len(lines),
    }
    for length in (2, 3, 4):
        measures[f"repetition_top_{length}_gram"] = share(top_ngram(tokens, length), size)
    for length in range(5, 11):
        measures[f"repetition_{length}_grams"] = share(repeated_ngrams(tokens, length), size)
    return measures


def measured(text: str) -> dict[str, float]:
    values = _scores.rule_measures(_character_classes(), *text_memory(texts_of(batch_of([text]))))[0]
    return dict(zip(_scores.RULE_MEASURES, values.tolist(), strict=True))


def check(text: str) -> None:
    ours, plain = measured(text), plain_measures(text)
    assert set(ours) - set(plain) == {"repetition_paragraph_characters"}
    assert {name: pytest.approx(value, abs=1e-12) for name, value in plain.items()} == {
        name: ours[name] for name in plain
    }, text


@pytest.mark.parametrize("index", range(60))
def test_measures_of_real_text_are_those_of_a_plain_formulation(index: int) -> None:
    check(real_texts(60)[index])


PIECES = (
    *("the", "Of", "a.", "b!", "...", "…", "#", "\n", "\n\n", " ", "{", "•", "-", "lorem ipsum", "。", '"', "”"),
    *(
        "x" * 31,
        "Use cookies",
        "JavaScript",
        "\u2028",
        "\x85",
        "\r",
        "one two three four five.",
        "é",
        "१",
        "₹",
        "世界。",
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=40
    ).flatmap(lambda parts: st.sampled_from([" ".join(parts), "".join(parts), "\n".join(parts), " ".join(parts * 3)]))
)
def test_measures_of_any_text_are_those_of_a_plain_formulation(text: str) -> None:
    check(text)


def test_bytes_that_are_not_text_are_measured_all_the_same() -> None:
    for raw in (b"\xff\xfe", b"a\xc3", b"\xed\xa0\x80 x", b"\xf4\x90\x80\x80", b"\x80" * 9, b"\xe4\xb8"):
        data = np.frombuffer(raw, dtype=np.uint8)
        values = _scores.rule_measures(_character_classes(), np.array([0, len(raw)]), data)
        assert np.isfinite(values).all()


def scores_of(*texts: str | None, families: str = "c4+gopher+repetition+fineweb") -> dict[str, list[object]]:
    scores = parse_scorer(f"rules,families={families}").score(batch_of(texts))
    return {name: column.to_pylist() for name, column in scores.items()}


PROSE = (
    "The committee met on Tuesday to talk about the budget of the coming year, and it did not agree.\n"
    "Some of its members have asked that the plan be looked at with more care before the vote.\n"
    "Others said that further delay would cost the town more than any mistake in the plan could.\n"
    'At the end of the evening the mayor rose and said: "We shall meet again in two weeks."\n'
)


def test_prose_is_kept_and_each_rule_drops_what_it_is_for() -> None:
    variants = {
        None: PROSE,
        "c4_curly_brackets <= 0": PROSE + "if (x) { return; }",
        "c4_lorem_ipsum <= 0": PROSE + "Lorem ipsum dolor sit amet.",
        "c4_sentences >= 3": PROSE.replace(".", "").replace('"', ""),
        "gopher_words >= 50": "\n".join(PROSE.split("\n")[:2]),
        "gopher_words <= 100000": PROSE * 2000,
        "gopher_mean_word_length >= 3": PROSE + "a b c d " * 60 + "end of it.",
        "gopher_mean_word_length <= 10": PROSE + "incomprehensibilities " * 90 + "at the end.",
        "gopher_hashes_per_word <= 0.1": PROSE + "# " * 12,
        "gopher_ellipses_per_word <= 0.1": PROSE + "... " * 12 + "and so on.",
        "gopher_bullet_lines <= 0.9": "\n".join("- " + line for line in PROSE.split("\n") if line),
        "gopher_ellipsis_lines <= 0.3": PROSE + "and then...\nor so…\n",
        "gopher_alphabetic_words >= 0.8": PROSE + "1,234 5,678 " * 20,
        "gopher_stop_words >= 2": re.sub(r"\b(the|be|to|of|and|that|have|with)\b", "zu", PROSE, flags=re.IGNORECASE),
        "repetition_lines <= 0.3": PROSE + "no\n" * 9,
        "repetition_paragraphs <= 0.3": "Yes.\n\n" + PROSE + "\nYes.\n\nYes.\n",
        "repetition_line_characters <= 0.2": PROSE + "A.\nB.\n" + PROSE.split("\n")[0] + "\n" + PROSE.split("\n")[2],
        "fineweb_ended_lines > 0.12": PROSE + "".join(f"line {n} that has no end to it at all\n" for n in range(40)),
        "fineweb_repeated_characters < 0.1": PROSE + PROSE.split("\n")[1],
        "fineweb_short_lines < 0.67": PROSE + "".join(f"short line, number {n}\n" for n in range(20)),
    }
    families = {None: "", "c4": "c4", "gopher": "gopher", "repetition": "repetition", "fineweb": "fineweb"}
    for reason, text in variants.items():
        family = families[reason.split("_")[0] if reason else None] or "c4+gopher+repetition+fineweb"
        scores = scores_of(text, families=family)
        assert scores["rules_reason"] == [reason], text[:60]
        assert {scores[f"rules_{name}"][0] for name in family.split("+")} == {0.0 if reason else 1.0}


def test_measures_worked_by_hand() -> None:
    found = measured("To be, or not...\n\nTo be, or not...\n# 42 is «the» answer! #\n")
    # Tokens: To be, or not... (twice) # 42 is «the» answer! #; the two # are no words.
    assert found["gopher_words"] == 12
    assert found["gopher_mean_word_length"] == (2 * (2 + 2 + 2 + 3) + 2 + 2 + 3 + 6) / 12
    assert found["gopher_hashes_per_word"] == 2 / 12
    assert found["gopher_ellipses_per_word"] == 2 / 12
    assert found["gopher_ellipsis_lines"] == 2 / 3
    assert found["gopher_alphabetic_words"] == 11 / 12
    assert found["gopher_stop_words"] == 3  # to, be, the
    assert found["repetition_lines"] == 1 / 3
    assert found["repetition_line_characters"] == 16 / found["characters"]
    assert found["repetition_paragraphs"] == 0
    assert found["repetition_top_2_gram"] == 2 * len("To be,") / found["characters"]
    assert found["repetition_5_grams"] == 0
    assert found["c4_kept_lines"] == 0
    assert measured("a\n\na\n\nb")["repetition_paragraph_characters"] == 1 / 7
    assert measured("a b\nc\n\na b\nc")["repetition_paragraph_characters"] == len("a b\nc") / 12


def test_a_null_has_no_verdict_and_an_empty_text_fails() -> None:
    scores = scores_of(None, "", PROSE)
    assert all(column[0] is None for column in scores.values())
    assert [scores[f"rules_{family}"][1] for family in RULES] == [0.0, 0.0, 1.0, 0.0]
    assert scores["rules_reason"][1:] == ["c4_sentences >= 3", None]
    assert scores["rules_gopher_words"][1:] == [0.0, 72.0]


def test_columns_are_those_that_are_named_and_do_not_depend_on_the_batch() -> None:
    texts = [*real_texts(40), None]
    scorer = parse_scorer("rules,families=fineweb+c4,name=r")
    scores = scorer.score(batch_of(texts))
    assert {name: column.type for name, column in scores.items()} == scorer.columns
    assert list(scores)[:3] == ["r_fineweb", "r_c4", "r_reason"] and "r_gopher" not in scores
    alone = [scorer.score(batch_of([text])) for text in texts]
    assert all(column.to_pylist() == [one[name][0].as_py() for one in alone] for name, column in scores.items())
    assert all(len(column) == 0 for column in scorer.score(batch_of([])).values())


def test_each_rule_is_of_a_measure() -> None:
    assert {rule.measure for rules in RULES.values() for rule in rules} <= set(_scores.RULE_MEASURES)
    assert all(rule.measure.startswith(family) for family, rules in RULES.items() for rule in rules)
