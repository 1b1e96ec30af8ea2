from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.compare.pairs import paired_losses
from megatron_kaiyuan.compare.runs import Run


def run_of(tokens: list[int], losses: list[float]) -> Run:
    rising = np.array(tokens, dtype=np.int64)
    before = np.concatenate([[0], rising[:-1]])
    steps = (rising - before) / 2.0
    empty: dict = {}
    return Run(
        name="run", folder=Path(), steps=len(tokens), tokens=rising, losses=np.array(losses),
        loss_steps=steps, seconds=np.zeros(len(tokens)), flops=None, series=empty, counts=empty, config=None,
        order=None, facts=empty, evaluation=None,
    )  # fmt: skip


ROWS = st.lists(st.integers(1, 4), min_size=1, max_size=12).map(lambda steps: np.cumsum(steps).tolist())
LOSSES = st.one_of(st.floats(0, 9), st.just(float("nan")))


@given(ROWS, ROWS, st.data())
def test_spans_are_those_that_both_runs_begin_and_end_with(
    one: list[int], other: list[int], data: st.DataObject
) -> None:
    """Against the mean over single tokens: each row's loss is that of every token in it."""
    losses = [data.draw(st.lists(LOSSES, min_size=len(rows), max_size=len(rows))) for rows in (one, other)]
    begin, end = sorted((data.draw(st.integers(0, 50)), data.draw(st.integers(0, 50))))
    found, steps = paired_losses(run_of(one, losses[0]), run_of(other, losses[1]), begin, end)

    def of_token(rows: list[int], values: list[float], token: int) -> float:
        return values[next(place for place, last in enumerate(rows) if token <= last)]

    edges = sorted(({0, *one} & {0, *other}) & set(range(begin, end + 1)))
    expected = []
    for first, last in itertools.pairwise(edges):
        means = [
            np.mean([of_token(rows, values, token) for token in range(first + 1, last + 1)])
            for rows, values in zip((one, other), losses, strict=True)
        ]
        if np.isfinite(means).all():
            expected.append((means[0] - means[1], (last - first) / 2))
    assert found == pytest.approx([apart for apart, _ in expected], abs=1e-9)
    assert steps.tolist() == [width for _, width in expected]
