"""A quality score in [0, 1] for harvested text: a heuristic for demonstrations, not a trained judge.

The score is the mean of four parts, each in [0, 1] and each a plain count on the text:

- length: log(characters / 200) / log(20), clipped; 200 characters give 0, 4,000 or more give 1;
- letters: share of letters (of any script) among the characters that are no white space, divided by the share that
  is common in good text of the domain (0.65 for code, 0.85 for others), at most 1; tables and numbers lose;
- distinct lines: share of different lines among those that are not blank; boilerplate and generated code lose;
- for code, explanation: share of comment lines, 1 at a fifth or more; for others, sentences: marks that end a sentence
  for each 160 characters, at most 1 (40 characters in Chinese); lists of names lose.

It tells long, explained and varied text from tables and crumbs. It knows nothing of truth, style or usefulness.
"""

from __future__ import annotations

import math
import re

_SHORT, _LONG_RATIO = 200, 20
_COMMON_LETTERS = {"code": 0.65}
_COMMENT_LINES = 0.2
_CHARACTERS_PER_SENTENCE = {"chinese": 40}
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？；]")
_DOCSTRING = re.compile(r'"""(?s:.*?)"""')


def score(text: str, domain: str) -> float:
    """The heuristic of this module, rounded to four digits."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return 0.0
    parts = [
        _clip(math.log(len(text) / _SHORT) / math.log(_LONG_RATIO)),
        _clip(_letter_share(text) / _COMMON_LETTERS.get(domain, 0.85)),
        len(set(lines)) / len(lines),
        _explanation(text, lines) if domain == "code" else _sentences(text, domain),
    ]
    return round(sum(parts) / len(parts), 4)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _letter_share(text: str) -> float:
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / max(len(visible), 1)


def _explanation(text: str, lines: list[str]) -> float:
    comments = sum(line.startswith("#") for line in lines)
    comments += sum(match.group().count("\n") + 1 for match in _DOCSTRING.finditer(text))
    return _clip(comments / len(lines) / _COMMENT_LINES)


def _sentences(text: str, domain: str) -> float:
    expected = len(text) / _CHARACTERS_PER_SENTENCE.get(domain, 160)
    return _clip(len(_SENTENCE_END.findall(text)) / expected)
