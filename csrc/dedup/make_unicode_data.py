"""Writes unicode_data.h from Python's unicodedata: what csrc/dedup needs to know of each code point, as runs.

    python csrc/dedup/make_unicode_data.py > csrc/dedup/unicode_data.h

The committed file is of Unicode 14.0.0 (Python 3.11), and no other Python writes it: another version changes
signatures. To move to one, change UNICODE below and raise Recipe.VERSION.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
from itertools import groupby

UNICODE = "14.0.0"
if unicodedata.unidata_version != UNICODE:
    sys.exit(f"error: this Python has Unicode {unicodedata.unidata_version}, and the table is of {UNICODE}")

# What is not assigned, private or a surrogate separates words, and stays as it is.
CODE_POINTS = [p for p in range(0x110000) if unicodedata.category(chr(p)) not in ("Cn", "Co", "Cs")]
SEPARATOR, LETTER, SPACELESS, CONTINUING, NUMBER, DIGIT, MARK, IGNORABLE = range(8)
# Scripts that put no space between words, by the names of their characters. Tibetan parts its syllables by a sign.
SPACELESS_NAMES = tuple(
    [
        "CJK UNIFIED IDEOGRAPH",
        "CJK COMPATIBILITY IDEOGRAPH",
        "IDEOGRAPHIC",
        "HIRAGANA",
        "KATAKANA",
        "HENTAIGANA",
        "HALFWIDTH KATAKANA",
        "VERTICAL KANA",
        "OLD CHINESE",
        "BOPOMOFO",
        "HANGUL",
        "HALFWIDTH HANGUL",
        "THAI",
        "LAO",
        "KHMER",
        "MYANMAR",
    ]
)
# Conjoining vowels and final consonants: NFD makes a syllable of Hangul of two or three letters.
HANGUL_CONTINUES = [*range(0x1160, 0x1200), *range(0xD7B0, 0xD800)]


def decomposed_without(categories: tuple[str, ...], text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) not in categories)


def is_dropped(character: str) -> bool:
    """Marks and format characters; spacing marks that NFD may reorder too, so that no order of marks matters."""
    return unicodedata.category(character) in ("Mn", "Me", "Cf") or unicodedata.combining(character) != 0


def plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not is_dropped(c))


def folded(character: str) -> str:
    """The default normalisation: marks dropped, case folded, decomposed."""
    return plain(plain(character).casefold())


def lowered(character: str) -> str:
    """Kaiyuan-Spark's: lower case, decomposed, non-spacing marks dropped."""
    return decomposed_without(("Mn",), character.lower())


def kind(character: str) -> int:
    category = unicodedata.category(character)
    if category == "Mn":
        return MARK
    if is_dropped(character):
        return IGNORABLE
    if category == "Nd":
        return DIGIT
    if category[0] == "N":
        return NUMBER
    if category[0] != "L" and category != "Mc":
        return SEPARATOR
    if ord(character) in HANGUL_CONTINUES:
        return CONTINUING
    return SPACELESS if unicodedata.name(character, "").startswith(SPACELESS_NAMES) else LETTER


def attributes(character: str) -> int:
    """kind | spacing mark << 3 | white space << 4 | cased << 5 | ignored between cased letters << 6."""
    # Unicode's Cased and Case_Ignorable are not in unicodedata, but decide how str.lower writes a sigma.
    is_cased = (character + "Σ").lower()[-1] == "ς"
    is_ignored = not is_cased and ("a" + character + "Σ").lower()[-1] == "ς"
    is_spacing_mark = unicodedata.category(character) == "Mc"
    flags = is_spacing_mark << 3 | character.isspace() << 4 | is_cased << 5 | is_ignored << 6
    return kind(character) | flags


def attribute_runs() -> Iterator[int]:
    """Code points in a row with the same attributes: how many << 8 | attributes."""
    values = [SEPARATOR] * 0x110000
    for point in CODE_POINTS:
        values[point] = attributes(chr(point))
    for value, run in groupby(values):
        yield len(list(run)) << 8 | value


def mappings(mapped: Callable[[str], str]) -> dict[int, str]:
    """Of all code points that change, but the syllables of Hangul, which arithmetic decomposes."""
    syllables = range(0xAC00, 0xD7A4)
    found = {point: mapped(chr(point)) for point in CODE_POINTS if point not in syllables}
    return {point: text for point, text in found.items() if text not in (chr(point), "")}


def mapping_numbers(found: dict[int, str]) -> Iterator[int]:
    """For each: code points after the one before << 2 | length, and what it becomes, as distances from itself."""
    before = 0
    for point, text in sorted(found.items()):
        yield (point - before) << 2 | len(text)
        yield from (ord(character) - point for character in text)
        before = point


def check() -> None:
    """What the C++ takes for granted."""
    for point in CODE_POINTS:
        character = chr(point)
        low = lowered(character)
        category = unicodedata.category(character)
        is_word = character.isalnum()
        assert is_word == (category[0] in "LN"), character
        assert len(character.lower()) == 1 or low == "i", character
        assert character.isspace() or not any(c.isspace() for c in low + folded(character)), character
        assert (category == "Nd") == any(unicodedata.category(c) == "Nd" for c in low), character
        assert unicodedata.combining(character) == 0 or category in ("Mn", "Mc"), character
        assert not any(is_dropped(c) for c in folded(character)), character
        assert len(low) <= 3 and len(folded(character)) <= 3, character
        assert low or category == "Mn", character
        assert folded(character) or all(is_dropped(c) for c in unicodedata.normalize("NFD", character)), character


def array(name: str, numbers: list[int]) -> str:
    lines, line = [], " "
    for number in numbers:
        if len(line) + len(str(number)) + 2 > 120:
            lines.append(line)
            line = " "
        line += f" {number},"
    body = "\n".join([*lines, line])
    return f"constexpr std::int32_t {name}[] = {{\n{body}\n}};\n"


def main() -> None:
    check()
    fold, low = mappings(folded), mappings(lowered)
    both = {point: text for point, text in fold.items() if low.get(point) == text}
    only_fold = {point: text for point, text in fold.items() if point not in both}
    only_low = {point: text for point, text in low.items() if point not in both}
    print(f"// Written by make_unicode_data.py from Unicode {unicodedata.unidata_version}; see there for the encoding.")
    print("#pragma once\n\n#include <cstdint>\n\nnamespace dedup::unicode {\n")
    print(f'constexpr const char* version = "{unicodedata.unidata_version}";')
    print(array("attribute_runs", list(attribute_runs())))
    print(array("mapped_by_both", list(mapping_numbers(both))))
    print(array("mapped_by_folding", list(mapping_numbers(only_fold))))
    print(array("mapped_by_lowering", list(mapping_numbers(only_low))))
    print("}  // namespace dedup::unicode")
    print(f"{len(both)} + {len(only_fold)} + {len(only_low)} mappings", file=sys.stderr)


if __name__ == "__main__":
    main()
