"""Numbers of an order recipe as people write them: `2.5e9` or `1.2T` tokens, shares and copies."""

from __future__ import annotations

import re
from typing import Any, Literal

from megatron_kaiyuan.numbers import read_number


def read_tokens(value: Any) -> int | Literal["all"]:
    """A budget: `all`, a whole number of tokens, or one such as 2.5e9, "800M", "1.2T".

    Raises:
        ValueError: it is none of these; the message says what to write.
    """
    if value == "all":
        return "all"
    text = str(value).strip()
    try:
        if isinstance(value, bool):
            raise ValueError
        number = read_number(text)
    except ValueError:
        raise ValueError(f"tokens is {value!r}; write all, or a number of tokens such as 2.5e9 or 1.2T") from None
    if number != number.to_integral_value() or number < 1:
        raise ValueError(f"tokens is {text}; it counts tokens: for a part of each dataset write keep: random 0.5")
    if number >= 2**63:
        raise ValueError(f"tokens is {text}; it must stay below 2^63")
    return int(number)


def read_share(value: Any) -> Any:
    """Turn away what is no share of a phase's tokens, with the number to write."""
    _refuse_percent("share", value)
    number = _number("share", value, "0.3")
    if number is not None and 1 < number <= 100:
        raise ValueError(f"share is {value}; for {value} % write {number / 100:g}")
    if number is not None and not 0 < number <= 1:
        raise ValueError(f"share is {value}; write a fraction above 0 and at most 1, or take the dataset out")
    return number


def read_copies(field: str, value: Any, most: int) -> Any:
    """Turn away what is no number of copies, with the number to write."""
    if isinstance(value, str) and (times := re.fullmatch(r"[xX×]\s*([\d.]+)|([\d.]+)\s*[xX×]", value.strip())):
        raise ValueError(f"{field} is {value!r}; write the number alone: {times[1] or times[2]}")
    _refuse_percent(field, value)
    number = _number(field, value, "2.5")
    if number is None:
        return None
    if 0 < number < 1:
        raise ValueError(f"{field} is {value}; copies are at least 1: for a part write keep: random {number:g}")
    if not 1 <= number <= most:
        raise ValueError(f"{field} is {value}; write a number from 1 to {most}")
    return number


def _refuse_percent(field: str, value: Any) -> None:
    if isinstance(value, str) and (percent := re.fullmatch(r"([\d.]+)\s*%", value.strip())):
        raise ValueError(f"{field} is {value!r}; write it as a fraction: {float(percent[1]) / 100:g}")


def _number(field: str, value: Any, example: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{field} is {value!r}, no number; write for example {field}: {example}") from None
