"""Document numbers and positions against one token at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.data.boundaries import document_numbers, position_ids

samples = st.integers(1, 20).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=4)
)


@given(samples)
def test_one_token_at_a_time(starts):
    numbers, positions = [], []
    for row in starts:
        number = position = 0
        for index, begins in enumerate(row):
            number += begins
            position = 0 if begins or index == 0 else position + 1
            numbers.append(number)
            positions.append(position)
    starts_bs = np.array(starts)
    assert document_numbers(starts_bs).ravel().tolist() == numbers
    assert position_ids(starts_bs).ravel().tolist() == positions
