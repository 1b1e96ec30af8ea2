"""Selection and repetition: exact counts, nesting, expectation, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import _curriculum
from tests.csrc import reference_algorithm1 as reference

scores_lists = st.lists(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -3.0, math.inf]) | st.floats(allow_nan=False), max_size=40
)
seeds = st.integers(0, 2**64 - 1)


def select(scores: list[float] | None, size: int, count: int, seed: int = 1) -> list[int]:
    array = None if scores is None else np.asarray(scores, float)
    return _curriculum.select("web", array, size, count, seed).tolist()


@given(scores_lists, seeds, st.data())
def test_selection_equals_the_slow_reference(scores, seed, data):
    size = len(scores)
    count = data.draw(st.integers(0, size))
    assert select(scores, size, count, seed) == reference.select(scores, size, count, seed)
    assert select(None, size, count, seed) == reference.select(None, size, count, seed)


@given(scores_lists, seeds, st.data())
def test_selection_is_exact_nested_and_of_the_best(scores, seed, data):
    size = len(scores)
    small = data.draw(st.integers(0, size))
    large = data.draw(st.integers(small, size))
    best, more = select(scores, size, small, seed), select(scores, size, large, seed)
    assert len(best) == small
    assert set(best) <= set(more)
    rest = set(range(size)) - set(best)
    assert min((scores[row] for row in best), default=math.inf) >= max((scores[row] for row in rest), default=-math.inf)


def test_random_selection_is_even():
    chosen = np.asarray(select(None, 100_000, 30_000))
    per_tenth = np.bincount(chosen // 10_000)
    assert np.all(np.abs(per_tenth - 3000) < 300)
    assert select(None, 100_000, 30_000, seed=2) != chosen.tolist()


@given(st.lists(st.integers(0, 2**48 - 1), max_size=30), st.floats(0, 9), seeds)
def test_copies_equal_the_slow_reference(sequences, repeat, seed):
    drawn = _curriculum.copies(np.asarray(sequences, np.uint64), repeat, seed).tolist()
    assert drawn == reference.copies(sequences, repeat, seed)


@pytest.mark.parametrize("repeat", [0.0, 1.0, 1.25, 2.5, 7.0])
def test_copies_have_the_expected_mean(repeat):
    size = 40_000
    drawn = _curriculum.copies(np.arange(size, dtype=np.uint64), repeat, 3)
    assert set(np.unique(drawn)) <= {math.floor(repeat), math.ceil(repeat)}
    part = repeat % 1
    assert abs(drawn.mean() - repeat) <= 5 * math.sqrt(part * (1 - part) / size)


def test_refuses():
    with pytest.raises(ValueError, match="dataset web: 5 documents asked of 4"):
        select(None, 4, 5)
    with pytest.raises(ValueError, match="dataset web: 1 of 2 scores are NaN"):
        select([math.nan, 0.0], 2, 1)
    with pytest.raises(ValueError, match="dataset web: 2 scores for 3 sequences"):
        select([1.0, 0.0], 3, 1)
    for repeat in (-1.0, math.nan, 2.0**32):
        with pytest.raises(ValueError, match="repeat is"):
            _curriculum.copies(np.arange(2, dtype=np.uint64), repeat, 1)
