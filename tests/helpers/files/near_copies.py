"""Real documents of this machine, and near-copies of them with a known share of edited words."""

from __future__ import annotations

import random
import re
import sysconfig
from functools import cache
from pathlib import Path


@cache
def real_documents(count: int, words: int = 250) -> tuple[str, ...]:
    """Pieces of Python's own library: code and prose in English, ASCII, each of other files or other places."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "test" in path.parts or "site-packages" in path.parts or "encodings" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        pieces = re.findall(rf"(?:\S+\s+){{{words}}}", text) if text.isascii() else []
        found += pieces[:20]
        if len(found) >= count:
            return tuple(found[:count])
    raise AssertionError(f"only {len(found)} documents on this machine")


def edited(text: str, share: float, draw: random.Random, vocabulary: list[str]) -> str:
    """The text with a share of its words replaced by others."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if any(map(str.isalpha, word))]
    for place in draw.sample(places, max(round(share * len(text.split())), 1)):
        words[place] = draw.choice(vocabulary)
    return " ".join(words)


def with_near_copies(documents: tuple[str, ...], every: int = 3, seed: int = 0) -> list[str]:
    """The documents and copies of every so many of them, mixed: in capitals, or with 0.5 to 20 % edited words."""
    draw = random.Random(seed)
    vocabulary = sorted({word for text in documents[:200] for word in re.findall("[a-z]{4,}", text)})
    rows = list(documents)
    for number in range(0, len(documents), every):
        share = draw.choice((0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2))
        text = documents[number]
        rows.append(edited(text, share, draw, vocabulary) if share else text.upper())
    draw.shuffle(rows)
    return rows
