"""Words, shingles and digests of csrc/dedup against a formulation with Python's unicodedata."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _dedup
from data_tools.dedup.signatures import Recipe, text_memory
from tests.helpers.references.deduplication import KNOWN, SAME_UNICODE, UNKNOWN, character_class, digest, shingle_set

MIXED = [
    *"aBé1ñ ,\u0301\u200d. ",
    *"漢字かなガ한국ㄱสวั",
    "\u1112",
    "\u1161",
    "\u11ab",
    "ß",
    "ﬁ",
    "ᾳ",
    "\u0345",
    "Ⅳ",
    "½",
]
TEXTS = st.lists(st.one_of(st.sampled_from(MIXED), st.sampled_from(KNOWN)), max_size=60).map("".join)
OPTIONS = [("auto", "space"), ("words", "space"), ("characters", "space"), ("auto", "keep")]


def check(texts: list[str], ngram: int = 5, shingles: Any = "auto", numbers: Any = "space") -> None:
    signer = Recipe(ngram=ngram, shingles=shingles, numbers=numbers).signer()
    memory = text_memory(pa.array(texts, pa.large_string()))
    offsets, hashes = signer.shingle_sets(*memory)
    digests = signer.sign(*memory)[2]
    for number, text in enumerate(texts):
        own = hashes[offsets[number] : offsets[number + 1]].tolist()
        assert own == sorted(shingle_set(text, ngram, shingles, numbers)), ascii(text)
        assert tuple(digests[number].tolist()) == digest(text, shingles, numbers), ascii(text)


@pytest.mark.parametrize(("shingles", "numbers", "step"), [(*OPTIONS[0], 1), *((*each, 7) for each in OPTIONS[1:])])
def test_every_code_point(shingles: str, numbers: str, step: int) -> None:
    """Each between letters of two scripts, so that it shows whether it joins, parts or vanishes."""
    check([f"a{c}b漢{c}" for c in [*KNOWN, *UNKNOWN][::step]], 1, shingles, numbers)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 7), st.sampled_from(OPTIONS))
@settings(max_examples=300, deadline=None)
def test_texts_of_all_scripts(texts: list[str], ngram: int, options: tuple[str, str]) -> None:
    check(texts, ngram, *options)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_equal_by_canonical_equivalence_case_and_marks(text: str) -> None:
    same = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    if SAME_UNICODE:
        same.append(unicodedata.normalize("NFD", text).replace("\u0301", ""))
    digests = Recipe().signer().sign(*text_memory(pa.array(same, pa.large_string())))[2]
    assert len(np.unique(digests, axis=0)) == 1


def test_spaceless_scripts_against_unicode_scripts() -> None:
    """By names here, by the Script property there."""
    regex = pytest.importorskip("regex")
    scripts = ("Han", "Hiragana", "Katakana", "Bopomofo", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
    pattern = regex.compile("|".join(rf"\p{{Script={script}}}" for script in scripts))
    others = set()
    for character in KNOWN:
        own = character_class(character)
        is_letter = own in ("letter", "spaceless", "continuing") and not unicodedata.combining(character)
        if is_letter and bool(pattern.match(character)) != (own != "letter"):
            others.add(character)
    # Letters that these scripts share: the long vowel sign, the ideographic closing mark, repeat marks.
    shared = {"IDEOGRAPHIC", "KATAKANA-HIRAGANA", "HALFWIDTH", "VERTICAL"}
    assert {unicodedata.name(c).split()[0] for c in others} == shared


def test_the_digest_has_what_shingles_leave_out() -> None:
    texts = ["1 + 1 = 2", "2 + 3 = 5", "Room 12, floor 3", "room 12 floor 3!", "Room 13, floor 3", "", "...", "7"]
    _, shingles, digests = Recipe().signer().sign(*text_memory(pa.array(texts)))
    assert shingles.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    groups = np.unique(digests, axis=0, return_inverse=True)[1].ravel()
    assert groups[2] == groups[3] and groups[5] == groups[6]
    assert len(set(groups.tolist())) == 6


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_not_utf8_do_no_harm(texts: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, texts)])
    data = np.frombuffer(b"".join(texts), np.uint8)
    for recipe in (Recipe(), Recipe(preset="kaiyuan", shingles="words", permutations=126)):
        signer = recipe.signer()
        whole = signer.sign(offsets, data)
        for number, text in enumerate(texts):
            alone = signer.sign(np.array([0, len(text)]), np.frombuffer(text, np.uint8))
            assert all(np.array_equal(a[number], b[0]) for a, b in zip(whole, alone, strict=True))


def test_offsets_are_checked() -> None:
    signer = Recipe().signer()
    data = np.zeros(10, np.uint8)
    for offsets in ([0, 5, 4], [-1, 5], [0, 11], []):
        with pytest.raises(ValueError, match="offset"):
            signer.sign(np.array(offsets, np.int64), data)
    with pytest.raises(TypeError):
        signer.sign(np.array([0, 5], np.int32), data)


def test_the_table_is_what_its_script_writes() -> None:
    """With Python 3.11's Unicode; with another the script refuses, and tests above compare what both know."""
    folder = Path(__file__).parents[3] / "csrc/dedup"
    script = [sys.executable, str(folder / "make_unicode_data.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    if SAME_UNICODE:
        assert done.returncode == 0 and done.stdout == (folder / "unicode_data.h").read_text()
    else:
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith(f"error: this Python has Unicode {unicodedata.unidata_version}")
    assert f"Unicode {_dedup.unicode_version}" in (folder / "unicode_data.h").read_text()
