"""The one reader of whole numbers as people write them, in recipes, overrides and options: 10000, 1e4, 10_000, 80k."""

from __future__ import annotations

import re
from decimal import Decimal

# A comma parts thousands only: 1,5e9 may mean 1.5e9 and is refused.
_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|(?:\d[\d_]*)?(?:\.\d+)?)(?:[eE]\+?(\d{1,2}))?\s*([kKmMbBgGtT]?)")
_UNITS = {"": 0, "k": 3, "m": 6, "b": 9, "g": 9, "t": 12}
# What is counted in thousands and millions. Of lengths and sizes, 4k may as well mean 4,096.
_COUNTED = re.compile(r"(tokens|documents|characters|rows|megabytes)$")


def read_number(text: str, units: bool = True) -> Decimal:
    """A number that is not negative, as `2.5e9`, `1_000`, `1,000` or, with `units`, `800M` and `1.2T`.

    Raises:
        ValueError: it is none of these, or has a unit where none is taken; the message says what to write.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not match[1]:
        examples = "10000, 1e4, 10_000 or 80k" if units else "4096, 1e4 or 10_000"
        raise ValueError(f"write a whole number, as {examples}, not {text!r}")
    try:
        number = Decimal(re.sub("[_,]", "", match[1])).scaleb(int(match[2] or 0) + _UNITS[match[3].lower()])
    except ArithmeticError:
        raise ValueError(f"{text!r} has an exponent that no number here has; write the number in full") from None
    if match[3] and not units:
        raise ValueError(f"{text} may mean {number:f}, or the power of two beside it; write the number in full")
    return number


def read_count(text: str, units: bool = True) -> int:
    """A whole number from 0 to 2^63 - 1, see `read_number`.

    Raises:
        ValueError: it is not one; the message says what to write.
    """
    number = read_number(text, units)
    if number != number.to_integral_value():
        raise ValueError(f"{text} is not a whole number; write one")
    if number >= 2**63:
        raise ValueError(f"{text} must stay below 2^63")
    return int(number)


def read_share(text: str) -> float:
    """A share as people write it: `0.05` or `5%`.

    Raises:
        ValueError: it is neither; the message says what to write.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = Decimal(number.strip())
    except ArithmeticError:
        value = Decimal("nan")
    if rest or not value.is_finite():
        raise ValueError(f"write a share, as 0.05 or 5%, not {text!r}")
    return float(value / 100 if percent else value)


def is_counted(name: str) -> bool:
    """Whether a field or an option counts what is counted in thousands and millions: tokens, documents, rows."""
    return _COUNTED.search(name) is not None
