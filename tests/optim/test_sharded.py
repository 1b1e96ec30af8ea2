"""Ranges of flattened tensors as rectangles, against counting."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan import platform


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> list:
    platform.activate("cpu")
    from megatron_kaiyuan.optim.sharded import rectangles as cut

    return list(cut(shape, start, stop))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_rectangles_cover_a_range_once_and_in_order(dimensions: list[int], data: st.DataObject) -> None:
    shape = tuple(dimensions)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, numbers.size))
    stop = data.draw(st.integers(start, numbers.size))
    found = [
        numbers[tuple(slice(place, place + length) for place, length in zip(offsets, sizes, strict=True))].ravel()
        for offsets, sizes in rectangles(shape, start, stop)
    ]
    assert np.concatenate([*found, np.empty(0, int)]).tolist() == list(range(start, stop))


def test_a_matrix_needs_three_at_most() -> None:
    assert rectangles((4, 10), 7, 33) == [((0, 7), (1, 3)), ((1, 0), (2, 10)), ((3, 0), (1, 3))]
    assert rectangles((4, 10), 12, 18) == [((1, 2), (1, 6))]
    assert rectangles((4, 10), 0, 40) == [((0, 0), (4, 10))]
    assert rectangles((), 0, 1) == [((), ())]
