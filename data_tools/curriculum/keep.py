"""Which documents of a dataset a phase keeps: `all`, `top F`, `random F` or `window A-B`, exact as written.

`top` and `window` count documents, or with ` of tokens` after them the tokens of the dataset.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Literal, NamedTuple

How = Literal["all", "top", "random", "window"]
_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?(?:/[0-9]+)?"
_WINDOW = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_HELP = "write all, top 0.4, random 0.4 or window 0.30-0.32"
_OF_TOKENS = re.compile(r"(.*\S)\s+of\s+(\S+)")


class Keep(NamedTuple):
    """A filter, with its fractions exact as written.

    Attributes:
        fraction: how far the rows reach, counted from the best score (`random`: of the order by draw).
        skip: where they begin, counted alike; above 0 for a window only.
        by_tokens: fractions are of tokens, not of documents.
    """

    how: How
    fraction: Fraction
    skip: Fraction = Fraction(0)
    by_tokens: bool = False

    @property
    def needs_score(self) -> bool:
        return self.how in ("top", "window")

    def count(self, rows: int) -> int:
        """Rows that stay of `rows`. A bound is fraction * rows, halves rounded up, so windows that touch share none."""
        return _rounded(self.fraction, rows) - _rounded(self.skip, rows)

    def ranks(self, rows: int) -> tuple[int, int]:
        """Ranks [first, last) that stay of `rows`, from 0.

        Ranks ascend by score (`top`, `window`: the best row has rank rows - 1) or by draw (`random`: the first rows
        drawn stay). Fractions of one order are nested: top 0.1 is the upper part of top 0.4.
        """
        near, far = _rounded(self.skip, rows), _rounded(self.fraction, rows)
        return (near, far) if self.how == "random" else (rows - far, rows - near)

    def tokens(self, total: int) -> tuple[int, int]:
        """Of `total` tokens, ascending by score: the documents that end in (first, last] stay.

        So `top F` is as few of the best documents as hold F * total tokens. An empty document counts one token. The
        same document is beyond 1 - F by its quantile (scores/quantiles.py).
        """
        return total - math.ceil(self.fraction * total), total - math.ceil(self.skip * total)


def parse_keep(text: str) -> Keep:
    """Read a filter. Fractions are read as decimals, so that 0.29 of 50 is 14.5, not a little less.

    Raises:
        ValueError: it is no filter, or a fraction is outside (0, 1]; the message says what to write.
    """
    if not isinstance(text, str):
        raise ValueError(f"keep is {text!r}; {_HELP}")
    words, unit = match.groups() if (match := _OF_TOKENS.fullmatch(text.strip())) else (text.strip(), "documents")
    how, _, rest = words.partition(" ")
    rest = rest.strip()
    if unit not in ("documents", "tokens"):
        raise ValueError(f"keep is {text!r}; fractions are of documents or of tokens, as {words} of tokens")
    if unit == "tokens" and how not in ("top", "window"):
        raise ValueError(
            f"keep is {text!r}; of tokens goes with top and window: for random ones set tokens of the phase"
        )
    if how == "all" and not rest:
        return Keep("all", Fraction(1))
    if how == "window":
        return _window(text, rest)._replace(by_tokens=unit == "tokens")
    if how not in ("top", "random"):
        raise ValueError(f"keep is {text!r}; {_HELP}")
    fraction = _fraction(text, how, rest)
    return Keep("top", fraction, by_tokens=unit == "tokens") if how == "top" else Keep("random", fraction)


def _fraction(text: str, how: str, number: str) -> Fraction:
    if percent := re.fullmatch(rf"({_NUMBER})\s*%", number):
        raise ValueError(f"keep is {text!r}; write it as a fraction: {how} {float(percent[1]) / 100:g}")
    try:
        fraction = Fraction(number)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"keep is {text!r}; {number!r} is no number, write for example {how} 0.4") from None
    if not 0 < fraction <= 1:
        hint = f"; for {number} % write {how} {float(fraction) / 100:g}" if 1 < fraction <= 100 else ""
        raise ValueError(f"keep is {text!r}; the fraction must be above 0 and at most 1{hint}")
    return fraction


def _window(text: str, bounds: str) -> Keep:
    match = _WINDOW.fullmatch(bounds.replace("%", ""))
    if match is None:
        raise ValueError(f"keep is {text!r}; write both bounds from the best score, as window 0.30-0.32")
    near, far = match[1], match[2]
    if "%" in bounds:
        raise ValueError(
            f"keep is {text!r}; write it in fractions: window {float(Fraction(near)) / 100:g}-"
            f"{float(Fraction(far)) / 100:g}"
        )
    first, last = Fraction(near), Fraction(far)
    if first > last:
        raise ValueError(f"keep is {text!r}; the bounds are reversed, write window {far}-{near}")
    if first == last:
        raise ValueError(f"keep is {text!r}; the window is empty, write for example window 0.30-0.32")
    if last > 1:
        raise ValueError(f"keep is {text!r}; the bounds are fractions from the best score, at most 1")
    return Keep("window", last, first)


def _rounded(fraction: Fraction, rows: int) -> int:
    return math.floor(fraction * rows + Fraction(1, 2))
