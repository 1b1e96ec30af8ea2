"""Masking of personal data: what is found, what is left, and that it takes linear time."""

from __future__ import annotations

import re
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.scores.personal_data import KINDS, mask
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.real_texts import real_texts

FOUND = {
    "email": ("jane.doe@example.org", "a@b.cd", "J_D+x%y-1@sub.example.co.uk", "42@example.travel"),
    "ip": (
        *("8.8.8.8", "1.1.1.1", "203.0.114.255", "2001:4860:4860::8888", "2606:4700:0:0:0:0:0:1111"),
        "2a00:1450:4001:81b::200e",
    ),
    "phone": (
        *("+44 20 7946 0958", "+1-202-555-0123", "+4930123456789", "(212) 555-0199", "212-555-0199"),
        *("+49 (30) 1234567", "13812345678", "138-1234-5678", "+86 138 1234 5678"),
    ),
}
LEFT = (
    *("user@localhost", "@decorator", "a @ b.cd", "x@y", "name@.com", "@pytest.mark.slow"),
    *(
        "10.0.0.1",
        "127.0.0.1",
        "192.168.1.1",
        "255.255.255.255",
        "256.1.1.1",
        "1.2.3",
        "1.2.3.4.5",
        "v8.1.2.3",
        "8.8.8.8a",
    ),
    *("::1", "fe80::1", "std::vector", "x[::2]", "12:30:45", "a::b", "2001:db8::1", "de:ad:be:ef:00:01"),
    *("2024-01-02", "123-45-6789", "3.14159265358", "978-3-16-148410-0", "+12345678901234567890", "1e+10", "+1 +2 +3"),
    *("12345678", "0x13812345678", "113812345678", "212-555-01990", "1000-2000-3000", "10,000,000"),
)


def masked(text: str, *kinds: str) -> tuple[str, dict[str, int]]:
    texts, counts = mask(pa.array([text]), kinds or KINDS)
    return texts[0].as_py(), {kind: column[0].as_py() for kind, column in counts.items()}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
@pytest.mark.parametrize("around", ["{}", "before {} after", "({}), <{}>;", "是 {} 。", "{}\n{}", '"{}": "{}".'])
def test_what_is_found(kind: str, value: str, around: str) -> None:
    found, counts = masked(around.replace("{}", value))
    assert found == around.replace("{}", f"<{kind}>")
    assert counts == {**dict.fromkeys(KINDS, 0), kind: around.count("{}")}


@pytest.mark.parametrize("value", LEFT)
def test_what_is_left(value: str) -> None:
    text = f"before {value} after"
    assert masked(text) == (text, dict.fromkeys(KINDS, 0))


def test_kinds_are_chosen() -> None:
    text = "a@b.cd 8.8.8.8 212-555-0199"
    assert masked(text, "ip") == ("a@b.cd <ip> 212-555-0199", {"ip": 1})
    assert masked(text, "phone", "email") == ("<email> 8.8.8.8 <phone>", {"phone": 1, "email": 1})
    with pytest.raises(UserError, match="unknown kind 'name'; choose from email, ip, phone"):
        mask(pa.array([text]), ["name"])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_nulls_and_empty_columns(kind: pa.DataType) -> None:
    texts, counts = mask(pa.array([None, "", "a@b.cd", "x"], type=kind).slice(0, 3))
    assert texts.to_pylist() == [None, "", "<email>"] and texts.type == pa.large_string()
    assert counts["email"].to_pylist() == [0, 0, 1] and counts["ip"].type == pa.int64()
    assert [len(part) for part in (mask(pa.array([], type=kind))[0], mask(pa.array([], type=kind))[1]["ip"])] == [0, 0]


PARTS = (*(value for values in FOUND.values() for value in values), *LEFT, *" .,-+()@:", "\n", "1", "a", "é", "中")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=30).map("".join))
def test_masking_twice_changes_nothing_more_and_counts_its_signs(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    once, counts = masked(text)
    assert masked(once) == (once, dict.fromkeys(KINDS, 0))
    for kind, count in counts.items():
        assert once.count(f"<{kind}>") == text.count(f"<{kind}>") + count
    pieces = re.split("<(?:email|ip|phone)>", once)
    position = 0
    for piece in pieces:  # what is between the signs stands in the text, in order
        position = text.index(piece, position) + len(piece)


def test_real_text_keeps_all_else() -> None:
    texts = pa.array(real_texts(150))
    found, counts = mask(texts)
    changed = [row for row, (a, b) in enumerate(zip(texts.to_pylist(), found.to_pylist(), strict=True)) if a != b]
    assert changed == [row for row in range(len(texts)) if any(column[row].as_py() for column in counts.values())]
    assert 0 < len(changed) < 100


HARD = ("a", "1", "1.", "a@", "@a.", "a:", ":", "+1 ", "+1-", "(1) ", "(123) ", "12 ", "a.", "1:", "::1", "a-", "138-",
        "+", "1234567890", "a@b.", "%", "a@b-")  # fmt: skip


@pytest.mark.parametrize("unit", HARD)
def test_time_is_linear(unit: str) -> None:
    """A text four times as long takes about four times as long; a quadratic pattern takes sixteen times."""

    def seconds(size: int) -> float:
        texts = pa.array([unit * (size // len(unit))])
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            mask(texts)
            best = min(best, time.process_time() - started)
        return best

    short = seconds(50_000)
    assert seconds(200_000) < 9 * short + 0.02
    assert short < 1
