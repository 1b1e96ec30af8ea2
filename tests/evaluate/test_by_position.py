from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.evaluate.by_position import ByPosition, bin_edges


@given(st.integers(1, 5000))
def test_bins_part_all_positions_and_grow_by_about_a_fifth(length: int) -> None:
    edges = bin_edges(length)
    assert edges[0] == 0 and edges[-1] == length and edges == sorted(set(edges))
    assert all(stop - start <= max(1, 0.25 * start + 1) for start, stop in itertools.pairwise(edges))
    assert len(edges) <= 4 * np.log2(length) + 3


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 100))
def test_figures_are_means_over_the_positions_of_a_bin(lengths: list[int], seed: int) -> None:
    drawn = np.random.default_rng(seed)
    batches = [drawn.random((drawn.integers(1, 4), length)) for length in lengths]
    total = ByPosition.empty()
    for batch in batches:
        total += ByPosition.of(batch)
    found = total.figures()
    assert sum(one["tokens"] for one in found) == sum(batch.size for batch in batches)
    for one in found:
        inside = [value for batch in batches for row in batch for value in row[one["from"] : one["to"]]]
        assert one["tokens"] == len(inside) and one["nats_per_token"] == pytest.approx(np.mean(inside))
