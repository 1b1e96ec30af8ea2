"""What csrc/dedup computes, written again with unicodedata, re, hashlib and Python's integers."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_tools import _dedup

SURROGATES = range(0xD800, 0xE000)
SAME_UNICODE = unicodedata.unidata_version == _dedup.unicode_version
# A later Python knows more characters; of those of Unicode 3.2 none may differ.
_DATABASE = unicodedata if SAME_UNICODE else unicodedata.ucd_3_2_0
_POINTS = [point for point in range(0x110000) if point not in SURROGATES]
KNOWN = [chr(point) for point in _POINTS if _DATABASE.category(chr(point)) not in ("Cn", "Co")]
# Of what is not assigned or private, of which there are seven times as many, a sample.
UNKNOWN = [chr(point) for point in _POINTS[::97] if SAME_UNICODE and unicodedata.category(chr(point)) in ("Cn", "Co")]

_MASK = (1 << 64) - 1
_BASE = 0xD1342543DE82EF95
_SPACELESS = (
    "CJK UNIFIED,CJK COMPATIBILITY IDEOGRAPH,IDEOGRAPHIC,HIRAGANA,KATAKANA,HENTAIGANA,HALFWIDTH KATAKANA,BOPOMOFO,"
    "HANGUL,HALFWIDTH HANGUL,THAI,LAO,KHMER,MYANMAR,VERTICAL KANA,OLD CHINESE"
)


def mix(x: int) -> int:
    """SplitMix64's step."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def string_hash(text: str) -> int:
    raw = text.encode()
    whole = len(raw) // 8 * 8
    state = 0
    for at in range(0, whole, 8):
        state = mix(state ^ int.from_bytes(raw[at : at + 8], "big"))
    return mix(state ^ int.from_bytes(raw[whole:], "big"))


def _without_marks(text: str) -> str:
    """NFD without marks, format characters and what NFD reorders."""
    return "".join(
        c
        for c in unicodedata.normalize("NFD", text)
        if unicodedata.category(c) not in ("Mn", "Me", "Cf") and not unicodedata.combining(c)
    )


def normalised(text: str) -> str:
    return _without_marks(_without_marks(text).casefold())


def character_class(character: str) -> str:
    """letter, spaceless, continuing (of a Hangul syllable), number or separator."""
    category = unicodedata.category(character)
    if category[0] == "N":
        return "number"
    if category[0] != "L" and category != "Mc":
        return "separator"
    if 0x1160 <= ord(character) < 0x1200 or 0xD7B0 <= ord(character) < 0xD800:
        return "continuing"
    return "spaceless" if unicodedata.name(character, "").startswith(tuple(_SPACELESS.split(","))) else "letter"


def words(text: str, shingles: str = "auto", numbers: str = "space") -> list[tuple[str, bool]]:
    """Words and numbers in order, and whether each is a number."""
    found: list[tuple[str, bool]] = []
    open_class = "separator"
    for character in normalised(text):
        own = character_class(character)
        if shingles == "words" and own in ("spaceless", "continuing"):
            own = "letter"
        if numbers == "keep" and own == "number":
            own = "letter"
        if shingles == "characters" and own == "letter":
            own = "spaceless"
        joins = own == open_class != "spaceless" or (own == "continuing" and open_class == "spaceless")
        open_class = "spaceless" if own == "continuing" else own
        if own == "separator":
            continue
        if joins:
            found[-1] = (found[-1][0] + character, found[-1][1])
        else:
            found.append((character, own == "number"))
    return found


def shingles_of(hashes: Sequence[int], ngram: int) -> Iterator[int]:
    length = min(ngram, len(hashes))
    for first in range(len(hashes) - length + 1 if hashes else 0):
        total = 0
        for value in hashes[first : first + length]:
            total = (total * _BASE + value) & _MASK
        yield mix(total)


def shingle_set(text: str, ngram: int = 5, shingles: str = "auto", numbers: str = "space") -> set[int]:
    hashes = [string_hash(word) for word, is_number in words(text, shingles, numbers) if not is_number]
    return set(shingles_of(hashes, ngram))


def digest(text: str, shingles: str = "auto", numbers: str = "space") -> tuple[int, int]:
    chain = total = 0
    for word, _ in words(text, shingles, numbers):
        value = string_hash(word)
        chain = mix(chain ^ value)
        total = (total * 0x9E3779B97F4A7C15 + value) & _MASK
    return chain, mix(total)


# The released pipeline's rules.

_SIGNS = "—”：％〈（、━【「」，】；“《„’∶´．–？！：～«〉》）。…►»•"
_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
_PUNCTUATION = re.compile(rf"[!-/:-@\[-`{{-~\x00-\x08\x0b-\x1f\x7f-\x9f{_SIGNS}]")


def kaiyuan_normalised(text: str) -> str:
    text = _PUNCTUATION.sub(" ", _NUMBER.sub("0", text.lower()))
    text = unicodedata.normalize("NFD", re.sub(r"\s+", " ", text.strip()))
    return "".join(c for c in text if unicodedata.category(c) != "Mn").strip()


def kaiyuan_hashes(text: str) -> set[int]:
    parts = re.split(r"\W", kaiyuan_normalised(text))
    grams = {" ".join(parts[first : first + 5]) for first in range(len(parts) - 4)}
    return {int.from_bytes(hashlib.sha1(gram.encode()).digest()[:8], "little") for gram in grams}


def kaiyuan_minima(hashes: set[int], permutations: int = 126, seed: int = 1234) -> NDArray[np.uint64]:
    generator = np.random.RandomState(seed)
    a, b = (generator.randint(1, 2**61 - 1, permutations, dtype=np.uint64) for _ in range(2))
    if not hashes:
        return np.full(permutations, _MASK, np.uint64)
    return np.array(
        [min((x * m + i & _MASK) % (2**61 - 1) for x in hashes) for m, i in zip(a.tolist(), b.tolist(), strict=True)],
        np.uint64,
    )
