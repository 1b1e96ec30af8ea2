"""The mixture law on runs whose law is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.research.mixture.law import Law, fit, left_out
from tests.helpers.references.mixtures import SLOPES, mixtures


def test_a_law_without_noise_is_found() -> None:
    shares = mixtures(40, 0)
    losses = 1.7 + np.exp(0.3 + shares @ SLOPES)
    law = fit(shares, losses, penalty=1e-9)
    assert law.floor == pytest.approx(1.7, abs=1e-3)
    # Only differences of slopes mean something: the shares sum to 1.
    np.testing.assert_allclose(law.slopes_d, SLOPES - SLOPES.mean(), atol=1e-3)
    assert law.intercept == pytest.approx(0.3 + SLOPES.mean(), abs=1e-3)
    others = mixtures(100, 1)
    np.testing.assert_allclose(law(others), 1.7 + np.exp(0.3 + others @ SLOPES), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 50.0), st.integers(2, 6))
def test_other_units_and_another_order_of_datasets_change_nothing(seed: int, unit: float, datasets: int) -> None:
    """Bits or nats, and whichever dataset is named first."""
    generator = np.random.default_rng(seed)
    shares = mixtures(30, seed, datasets)
    losses = 2 + np.exp(shares @ generator.normal(0, 0.5, datasets)) + generator.normal(0, 0.01, 30)
    order = generator.permutation(datasets)
    law, other = fit(shares, losses, 0.03), fit(shares[:, order], unit * losses, 0.03)
    others = mixtures(20, seed + 1, datasets)
    np.testing.assert_allclose(other(others[:, order]), unit * law(others), rtol=2e-3)


def test_noise_is_not_taken_for_slopes() -> None:
    """Losses that follow from nothing: the penalty that leaves runs out best keeps slopes near 0."""
    shares = mixtures(40, 2)
    losses = 3 + np.random.default_rng(3).normal(0, 0.05, 40)
    law = fit(shares, losses)
    told = law(mixtures(200, 4))
    assert np.abs(told - 3).max() < 0.1
    assert law.penalty > 0.01


def test_a_run_that_is_left_out_does_not_count() -> None:
    """Its loss may be anything, and what the others say of it stays."""
    shares = mixtures(24, 5)
    losses = 2 + np.exp(shares @ SLOPES)
    spoiled = losses.copy()
    spoiled[3] += 100
    told, told_spoiled = (left_out(shares, values, 0.0001, folds=24) for values in (losses, spoiled))
    np.testing.assert_allclose(told[3], told_spoiled[3], rtol=1e-6)
    assert abs(told[3] - losses[3]) < 0.02


def test_equal_losses_are_a_flat_law() -> None:
    law = fit(mixtures(20, 6), np.full(20, 2.5))
    np.testing.assert_allclose(law(mixtures(5, 7)), 2.5, atol=1e-6)


def test_too_few_runs_are_an_error() -> None:
    with pytest.raises(ValueError, match="three or more"):
        fit(mixtures(2, 0), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="8 mixtures and 7 losses"):
        fit(mixtures(8, 0), np.ones(7))


def test_a_law_is_a_function_of_shares() -> None:
    law = Law(1.0, 0.0, np.array([1.0, -1.0]), 0.0)
    np.testing.assert_allclose(law(np.array([[1.0, 0.0], [0.5, 0.5]])), [1 + np.e, 2.0])


def test_a_dataset_that_no_run_has_seen_is_the_worst() -> None:
    shares = mixtures(30, 8)
    losses = 2 + np.exp(shares @ SLOPES)
    law = fit(np.insert(shares, 2, 0.0, axis=1), losses, 0.01)
    assert law.slopes_d[2] == law.slopes_d.max()
    np.testing.assert_allclose(np.delete(law.slopes_d, 2), fit(shares, losses, 0.01).slopes_d)
