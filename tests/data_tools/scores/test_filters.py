"""The language of --filter against Python's own evaluation of the same expression."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.scores.filters import parse_filter, require_columns
from megatron_kaiyuan.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"a": 1.5, "n": 3, "ok": True, "word": "de"},
    {"a": None, "n": None, "ok": None, "word": None},
    {"a": math.nan, "n": -7, "ok": False, "word": ""},
    {"a": math.inf, "n": 2**60 + 1, "ok": True, "word": "zh"},
    {"a": -0.0, "n": 0, "ok": False, "word": "it's"},
    {"a": -2.25, "n": 3, "ok": True, "word": "de"},
]
TYPES = {"a": pa.float64(), "n": pa.int64(), "ok": pa.bool_(), "word": pa.string()}
BATCH = pa.RecordBatch.from_pylist(ROWS, schema=pa.schema(TYPES))

numbers = st.sampled_from([0, 3, -7, 1, 2**60, 2**60 + 1, 1.5, -2.25, 1e300, -0.5])
words = st.sampled_from(["'de'", '""', "'zh'", '"it\'s"', "'a'"])
operators = st.sampled_from([">", ">=", "<", "<=", "==", "!="])
comparisons = st.one_of(
    st.tuples(st.sampled_from(["a", "n", "ok", "absent"]), operators, numbers.map(repr)),
    st.tuples(st.just("word"), operators, words),
)


def compounds(inner: Any) -> Any:
    return st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    )


conditions = st.recursive(comparisons, compounds, max_leaves=8)


def written(tree: Any) -> str:
    """As a user writes it, a pair of brackets around each part."""
    if len(tree) == 3:
        return f"{tree[0]}{tree[1]} {tree[2]}"
    if tree[0] == "not":
        return f"not ({written(tree[1])})"
    return f" {tree[0]} ".join(f"({written(part)})" for part in tree[1])


def holds(tree: Any, row: dict[str, Any]) -> bool:
    if len(tree) == 3:
        value = row.get(tree[0])
        if value is None or value != value:
            return False
        return bool(eval(f"value {tree[1]} {tree[2]}", {"value": value}))
    if tree[0] == "not":
        return not holds(tree[1], row)
    return (all if tree[0] == "and" else any)(holds(part, row) for part in tree[1])


@settings(max_examples=300, deadline=None)
@given(conditions)
def test_every_row_is_judged_as_python_does(tree: Any) -> None:
    condition = parse_filter(written(tree))
    expected = [holds(tree, row) for row in ROWS]
    verdict = condition.verdict(BATCH)
    assert verdict.holds.to_pylist() == expected
    assert [reason is None for reason in verdict.reasons.to_pylist()] == expected
    # The text form means the same, and a reason is a condition that is true of its row.
    again = parse_filter(str(condition))
    assert again.verdict(BATCH).holds.to_pylist() == expected and str(again) == str(condition)
    for row, reason in enumerate(verdict.reasons.to_pylist()):
        if reason and "missing" not in reason:
            assert parse_filter(reason).verdict(BATCH.slice(row, 1)).holds.to_pylist() == [True]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab>=<!()'\"` 0.1eandotr-", max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        condition = parse_filter(text)
    except UserError as error:
        assert "\n" not in str(error) and "expected" in str(error)
    else:
        assert str(parse_filter(str(condition))) == str(condition)


def test_and_binds_closer_than_or_and_not_closest() -> None:
    assert str(parse_filter("a > 1 or n < 2 and not ok == 1")) == "a > 1 or (n < 2 and not ok == 1)"


def test_reasons_name_the_comparison_that_failed() -> None:
    reasons = parse_filter("n >= 0 and (a > 1 or word == 'de')").verdict(BATCH).reasons.to_pylist()
    assert reasons == [
        None,
        "n is missing: n >= 0",
        "not n >= 0",
        None,
        "not a > 1 and not word == 'de'",
        None,
    ]
    assert parse_filter("not n == 3").verdict(BATCH).reasons.to_pylist()[0] == "n == 3"
    assert parse_filter("a > 1 or n > 5").verdict(BATCH).reasons[1].as_py() == (
        "a is missing: a > 1 and n is missing: n > 5"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column, 'not' or '\\(' at character 1, not the end"),
        ("edu > ", "expected a number or a quoted text at character 6, not the end"),
        ("edu 2", "expected one of .* at character 5, not '2'"),
        ("edu > 2 edu < 3", "expected 'and' or 'or' at character 9, not 'edu'"),
        ("(edu > 2", r"expected '\)' at character 9, not the end"),
        ("edu > __import__('os')", "expected a number or a quoted text at character 7"),
        ("edu = 2", "at character 5, not '='"),
        ("not " * 60 + "a > 1", "at most 50"),
        ("and > 1", "expected a column"),
    ],
)
def test_mistakes_are_pointed_at(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_filter(text)


def test_columns_must_be_there_and_hold_what_they_are_compared_with() -> None:
    with pytest.raises(UserError, match="the input has no column 'edo'; it has a, edu"):
        require_columns([parse_filter("a > 1 and edo > 2")], ["a", "edu"], "the input")
    with pytest.raises(UserError, match="column 'word' holds text, compared with 3"):
        parse_filter("word > 3").verdict(BATCH)
    with pytest.raises(UserError, match="column 'a' holds numbers, compared with '3'"):
        parse_filter("a > '3'").verdict(BATCH)
    assert parse_filter("`my column` > 3").columns() == {"my column"}
