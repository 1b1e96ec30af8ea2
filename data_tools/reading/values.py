"""Single values of rows: what is text, what is a number, and how anything else becomes text."""

from __future__ import annotations

import json
import math
from typing import Any

# Python's JSON encoder calls itself for each level, and its interpreter allows a thousand calls.
DEEPEST = 500
# Whole numbers from here on, on both sides of 0, may come from the fast parser of JSON as rounded floats.
_ROUNDED = float(1 << 63)


class BadRow(ValueError):
    """A row that cannot become a document; the message is the reason, short enough to count by."""


class LeftOutRow(ValueError):
    """A row that is sound but was not asked for; the message is the reason."""


def as_text(value: Any, name: str = "") -> str | None:
    """Return a metadata value as a string: other types become JSON, a missing value stays None.

    Args:
        name: of the field, for the reason.

    Raises:
        BadRow: lists and objects are nested more than `DEEPEST` deep.
    """
    if value is None:
        return None
    # Escaped where it is not a string itself, so that the result always has a UTF-8 form.
    if isinstance(value, str) and text_bytes(value) >= 0:
        return value
    if isinstance(value, list | dict) and _is_deep(value):
        raise BadRow(f"field {name!r} is nested more than {DEEPEST} deep")
    return json.dumps(value, sort_keys=True, default=str)


def text_bytes(text: str) -> int:
    """Size in UTF-8; -1 where JSON escapes left half of a surrogate pair, which has no UTF-8 form."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


def is_missing(score: Any) -> bool:
    """Whether a document has no score: there is no such field, or it is null or NaN."""
    return score is None or score != score


def as_number(score: Any) -> float:
    """A score as a double, NaN where it is missing, infinite where a double cannot hold it.

    Raises:
        BadRow: it is not a number.
    """
    if is_missing(score):
        return math.nan
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise BadRow("not a number")
    try:
        return float(score)
    except OverflowError:
        return math.inf


def may_be_rounded(value: Any) -> bool:
    """Whether it is, or holds, a float that may stand for a whole number beyond 64 bits."""
    left = [value]
    while left:
        value = left.pop()
        if type(value) is float:
            if abs(value) >= _ROUNDED:
                return True
        elif type(value) is dict:
            left.extend(value.values())
        elif type(value) is list:
            left.extend(value)
    return False


def _is_deep(value: Any) -> bool:
    """Whether it is nested more than `DEEPEST` deep; without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            return True
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return False
