"""Which documents of a dataset a phase keeps: `all`, `top F`, `random F` or `window A-B`, exact as written."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Literal, NamedTuple

How = Literal["all", "top", "random", "window"]
_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?(?:/[0-9]+)?"
_WINDOW = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_HELP = "write all, top 0.4, random 0.4 or window 0.30-0.32"


class Keep(NamedTuple):
    """A filter, with its fractions exact as written.

    Attributes:
        fraction: how far the rows reach, counted from the best score (`random`: of the order by draw).
        skip: where they begin, counted alike; above 0 for a window only.
    """

    how: How
    fraction: Fraction
    skip: Fraction = Fraction(0)

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


def parse_keep(text: str) -> Keep:
    """Read a filter. Fractions are read as decimals, so that 0.29 of 50 is 14.5, not a little less.

    Raises:
        ValueError: it is no filter, or a fraction is outside (0, 1]; the message says what to write.
    """
    if not isinstance(text, str):
        raise ValueError(f"keep is {text!r}; {_HELP}")
    how, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if how == "all" and not rest:
        return Keep("all", Fraction(1))
    if how == "window":
        return _window(text, rest)
    if how not in ("top", "random"):
        raise ValueError(f"keep is {text!r}; {_HELP}")
    return Keep("top" if how == "top" else "random", _fraction(text, how, rest))


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
