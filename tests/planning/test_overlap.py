"""What is waited for beside a pass: by hand, and against a clock that ticks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.planning.overlap import Piece, waited_for_gradients, waited_for_weights

PIECES = st.lists(st.builds(Piece, st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6)


def test_by_hand() -> None:
    """Three buckets, 2 s of the pass each."""
    # Reductions of 1 s: the last one is waited for. Of 3 s: they end at 5, 8 and 11 s.
    assert waited_for_gradients([Piece(2, 1)] * 3) == 1
    assert waited_for_gradients([Piece(2, 3)] * 3) == 5
    # One bucket is ready when the pass is over.
    assert waited_for_gradients([Piece(6, 3)]) == 3
    # The first bucket's weights are waited for; of gatherings of 3 s a second at each further one.
    assert waited_for_weights([Piece(2, 1)] * 3) == 1
    assert waited_for_weights([Piece(2, 3)] * 3) == 3 + 1 + 1


@given(PIECES)
def test_gradients_tick_by_tick(pieces: list[Piece]) -> None:
    ready, computing, left, tick = [], 0, int(pieces[0].compute), 0
    reducing, reduced, end_of_pass = 0, 0, None
    while reduced < len(pieces):
        while computing < len(pieces) and left == 0:
            ready.append(computing)
            computing += 1
            left = int(pieces[computing].compute) if computing < len(pieces) else 0
        if computing == len(pieces) and end_of_pass is None:
            end_of_pass = tick
        if reducing == 0 and reduced < len(ready):
            reducing = int(pieces[reduced].collective)
        tick += 1
        left = max(0, left - 1)
        if reducing:
            reducing -= 1
            reduced += reducing == 0
    assert end_of_pass is not None
    assert waited_for_gradients(pieces) == tick - end_of_pass


@given(PIECES)
def test_weights_tick_by_tick(pieces: list[Piece]) -> None:
    """The gathering of a bucket starts when the one before it is first needed and there."""
    waited, gathering = 0, [int(pieces[0].collective), *[0] * (len(pieces) - 1)]
    for index, piece in enumerate(pieces):
        while gathering[index] > 0:
            waited += 1
            gathering[index] -= 1
        if index + 1 < len(pieces):
            gathering[index + 1] = int(pieces[index + 1].collective)
        for _ in range(int(piece.compute)):
            if index + 1 < len(pieces):
                gathering[index + 1] -= 1
    assert waited_for_weights(pieces) == waited
