"""Numbers of a plan: as many digits as asked, and never an exponent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.planning.show_numbers import digits, duration


@pytest.mark.parametrize(
    ("value", "count", "text"),
    [
        (104.5, 2, "104"),
        (99.96, 2, "100"),
        (71.06, 2, "71"),
        (9.97, 2, "10"),
        (4.63, 2, "4.6"),
        (0.0123, 2, "0.012"),
        (0, 3, "0"),
        (21_622.4, 3, "21,622"),
    ],
)
def test_by_hand(value: float, count: int, text: str) -> None:
    assert digits(value, count) == text


@given(value=st.floats(1e-9, 1e15), count=st.integers(2, 4))
def test_a_number_is_read_back_to_its_digits(value: float, count: int) -> None:
    text = digits(value, count)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.5 * 10 ** (1 - count) * 1.001)


def test_durations() -> None:
    assert duration(99.6 * 86_400) == "100 days" and duration(5400) == "1.5 hours"
    assert duration(8.9e-06) == "less than 0.01 seconds" and duration(0.11) == "0.11 seconds"
