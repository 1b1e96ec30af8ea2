"""Drawn mixtures keep their bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.draw import draw, hold

NAMES = ["code", "math", "web", "wiki"]
TOKENS = np.array([2e9, 1e8, 2e10, 5e8])


def test_mixtures_are_drawn_round_what_there_is() -> None:
    shares = draw(NAMES, TOKENS, np.ones(4), 400, seed=3)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[0], TOKENS / TOKENS.sum())
    # Uneven ones are among them, so that every dataset has been seen high and low.
    assert (shares.max(0) > 0.2).all() and (shares.min(0) < 0.1).all()
    assert shares.mean(0).argmax() == 2
    np.testing.assert_array_equal(shares, draw(NAMES, TOKENS, np.ones(4), 400, seed=3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4), st.integers(0, 99))
def test_no_share_is_above_its_bound(bounds: list[float], seed: int) -> None:
    largest = np.array(bounds)
    if largest.sum() < 1:
        with pytest.raises(UserError, match="sum to less than 1"):
            draw(NAMES, TOKENS, largest, 8, seed)
        return
    shares = draw(NAMES, TOKENS, largest, 8, seed)
    assert (shares <= largest + 1e-9).all() and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), 1)


@given(st.lists(st.floats(0, 1.0), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 0.01))
def test_holding_changes_nothing_that_is_within(parts: list[float]) -> None:
    shares = np.array(parts) / sum(parts)
    np.testing.assert_allclose(hold(shares, np.ones(3)), shares, atol=1e-12)


def test_what_a_bound_cuts_goes_to_the_others_in_proportion() -> None:
    np.testing.assert_allclose(hold(np.array([0.6, 0.3, 0.1]), np.array([0.2, 1, 1])), [0.2, 0.6, 0.2])
    # Once more where that fills another.
    np.testing.assert_allclose(hold(np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 1])), [0.2, 0.5, 0.3])
    # A dataset that was not drawn comes in only when nothing else can.
    np.testing.assert_allclose(hold(np.array([1.0, 0.0]), np.array([0.3, 0.8])), [0.3, 0.7])
