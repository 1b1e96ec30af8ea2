"""The one reader of whole numbers, against Python's own for what both read, and with real commands."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.numbers import is_counted, read_count, read_number, read_share


@given(st.integers(0, 2**63 - 1))
def test_every_way_to_write_a_number_gives_it(number: int) -> None:
    for text in (str(number), f"{number:_}", f"{number:,}", f" {number} "):
        assert read_count(text) == number


@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["k", "M", "B", "g", "T"]))
def test_powers_and_units_are_exact(number: int, power: int, unit: str) -> None:
    assert read_count(f"{number}e{power}") == number * 10**power
    factor = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}[unit.lower()]
    assert read_count(f"{number}{unit}") == number * factor
    assert read_number(f"{number}.25 {unit}") == (number + Decimal("0.25")) * factor


@pytest.mark.parametrize(
    "text", ["", "k", "many", "-1", "1,5e9", "1.5", "1e-3", "0x10", "1e99", "9" * 30, "1 2", "nan", "inf"]
)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|below"):
        read_count(text)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), (" 2.5 %", 0.025), ("0.05", 0.05), ("1e-2", 0.01)])
def test_a_share_may_be_a_percentage(text: str, share: float) -> None:
    assert read_share(text) == share


@pytest.mark.parametrize("text", ["%", "", "5%%", "5 percent", "nan", "1/20"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write a share, as 0.05 or 5%, not {text!r}")):
        read_share(text)


def test_a_unit_is_for_what_is_counted_in_thousands() -> None:
    assert is_counted("train_tokens") and is_counted("max_bad_rows") and not is_counted("seq_length")
    with pytest.raises(ValueError, match="4000, or the power of two beside it; write the number in full"):
        read_count("4k", units=False)
