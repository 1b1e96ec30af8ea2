"""Columns of rows, against the rows themselves."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.report.table import _BATCH, Table

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=3), st.lists(st.just(1))
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 2**63 - 1), "tokens": st.integers(0, 2**63 - 1)},
        optional={name: VALUES for name in ("loss", "validation/loss", "phase")},
    ),
    max_size=30,
)


def as_number(value: Any) -> float:
    """What `float` makes of a number, and NaN of all else."""
    if not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e308 or isinstance(value, float) else math.nan


@given(ROWS)
def test_columns_hold_the_numbers_and_texts_of_the_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(rows)
    assert len(table) == len(rows)
    assert table.steps.tolist() == [row["step"] for row in rows]
    assert table.tokens.tolist() == [row["tokens"] for row in rows]
    assert set(table.names) == {name for row in rows for name in row}
    for name in ("loss", "validation/loss", "phase", "never"):
        np.testing.assert_array_equal(table.column(name), [as_number(row.get(name)) for row in rows])
        assert table.texts(name) == Counter(value for row in rows if isinstance(value := row.get(name), str))


@given(ROWS.filter(len), st.data())
def test_kept_rows_are_those_and_in_that_order(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    table = Table(rows)
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    table.keep(np.array(places, dtype=np.int64))
    assert len(table) == len(places)
    for place, row in zip(places, table, strict=True):
        assert (row["step"], row["tokens"]) == (rows[place]["step"], rows[place]["tokens"])
        phase = rows[place].get("phase")
        number = as_number(phase)
        assert row.get("phase") == (phase if isinstance(phase, str) else None if math.isnan(number) else number)


def test_figures_that_few_rows_have_take_little_memory() -> None:
    every = 512
    rows = 5 * _BATCH + 7
    table = Table(
        {"step": step, "tokens": step, "loss": 1.0, **({"validation/loss": 0.5 * step} if step % every == 0 else {})}
        for step in range(rows)
    )
    assert np.flatnonzero(~np.isnan(table.column("validation/loss"))).tolist() == list(range(0, rows, every))
    assert table.column("validation/loss")[every] == 0.5 * every
    held = {name: sum(piece.size for _, piece in column.pieces) for name, column in table._columns.items()}
    assert held["loss"] == rows and held["validation/loss"] == -(-rows // every)
    places = {id(where) for column in table._columns.values() for where, _ in column.pieces}
    assert len(places) == 2 * len(table._columns["validation/loss"].pieces), "shared by the columns"
