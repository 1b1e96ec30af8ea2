"""Intervals hold what they say they hold, on runs drawn from a known law."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_kaiyuan.research.mixture.uncertainty import fit_domains
from tests.helpers.references.mixtures import SLOPES, mixtures


def losses(shares: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return 2 + np.exp(shares @ SLOPES) + np.random.default_rng(seed).normal(0, noise, len(shares))


def test_intervals_hold_further_runs() -> None:
    """Over several sets of 48 runs: 90 of 100 further ones, give or take."""
    held = []
    for seed in range(4):
        shares, further = mixtures(48, seed), mixtures(200, 100 + seed)
        fitted = fit_domains(shares, {"code": losses(shares, 0.03, seed)}, resamples=100)["code"]
        low, high = fitted.interval(further)
        of_further = losses(further, 0.03, 200 + seed)
        held.append(np.mean((low <= of_further) & (of_further <= high)))
    assert 0.86 <= np.mean(held) <= 0.97


def test_leave_out_error_is_near_the_noise() -> None:
    shares = mixtures(64, 1)
    assert fit_domains(shares, {"code": losses(shares, 0.03, 1)})["code"].leave_out_error == pytest.approx(
        0.033, abs=0.01
    )


def test_domains_share_their_draws_and_repeat() -> None:
    """The same runs are drawn for all domains, so that differences between mixtures stay paired."""
    shares = mixtures(30, 2)
    values = losses(shares, 0.02, 2)
    found = fit_domains(shares, {"code": values, "again": values}, resamples=5)
    again = fit_domains(shares, {"code": values}, resamples=5)
    for one, other, third in zip(
        found["code"].resampled, found["again"].resampled, again["code"].resampled, strict=True
    ):
        np.testing.assert_array_equal(one.slopes_d, other.slopes_d)
        np.testing.assert_array_equal(one.slopes_d, third.slopes_d)
