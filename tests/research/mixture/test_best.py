"""The best mixture, against a grid over all mixtures of three datasets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megatron_kaiyuan.research.mixture.best import Objective, best
from megatron_kaiyuan.research.mixture.exposure import exposures
from megatron_kaiyuan.research.mixture.uncertainty import fit_domains
from tests.helpers.references.mixtures import mixtures

GRID = np.array([(a, b, 100 - a - b) for a, b in itertools.product(range(101), repeat=2) if a + b <= 100]) / 100
SLOPES = {"code": np.array([-1.5, 0.2, 0.3]), "prose": np.array([0.3, -1.0, 0.4])}


@pytest.fixture(scope="module")
def runs() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    shares = mixtures(40, 0, 3)
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 40))
    return shares, {
        name: 2 + np.exp(shares @ slopes) + one for (name, slopes), one in zip(SLOPES.items(), noise, strict=True)
    }


@pytest.mark.parametrize(
    ("weights", "largest"),
    [
        ({"code": 1.0, "prose": 1.0}, (1, 1, 1)),
        ({"code": 3.0, "prose": 1.0}, (0.4, 1, 1)),
        ({"code": 1.0}, (0.6, 0.3, 0.2)),
    ],
)
def test_no_mixture_of_a_grid_is_better(
    weights: dict[str, float], largest: tuple[float, ...], runs: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    objective = Objective(fit_domains(*runs, resamples=20), weights)
    found = best(objective, np.zeros(3), np.array(largest))
    assert found.shares_d.sum() == pytest.approx(1) and (found.shares_d <= np.array(largest) + 1e-9).all()
    allowed = GRID[(np.array(largest) + 1e-9 >= GRID).all(1)]
    assert found.objective <= objective(allowed).min() + 1e-6
    assert (found.low_d <= found.shares_d).all() and (found.shares_d <= found.high_d).all()


def test_what_the_runs_cannot_tell_is_as_good() -> None:
    """Losses of noise alone: nearly all mixtures are as good. Losses without noise: few are."""
    shares = mixtures(40, 1, 3)
    noise = {"code": 3 + np.random.default_rng(1).normal(0, 0.02, 40)}
    vague = best(Objective(fit_domains(shares, noise, resamples=60), {"code": 1.0}), np.zeros(3), np.ones(3))
    assert vague.as_good > 0.5 * vague.candidates
    clear = {"code": 2 + np.exp(shares @ SLOPES["code"])}
    sure = best(Objective(fit_domains(shares, clear, resamples=60), {"code": 1.0}), np.zeros(3), np.ones(3))
    assert sure.as_good < 0.02 * sure.candidates and sure.shares_d[0] > 0.98


def test_a_dataset_that_would_be_repeated_too_often_gives_less(runs: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    """Of the best dataset there are few tokens: beyond some epochs more of it is worth nothing."""
    shares, losses = runs
    plenty, few = np.array([1e12, 1e12, 1e12]), np.array([2e7, 1e12, 1e12])
    budget = 1e10
    weights = {"code": 1.0}
    measured = fit_domains(exposures(shares, plenty, budget), losses, resamples=5)
    free = best(Objective(measured, weights, lambda x: exposures(x, plenty, budget)), np.zeros(3), np.ones(3))
    short = best(Objective(measured, weights, lambda x: exposures(x, few, budget)), np.zeros(3), np.ones(3))
    assert free.shares_d[0] > 0.9
    assert short.shares_d[0] < 0.2


def test_smallest_shares_are_kept(runs: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    objective = Objective(fit_domains(*runs, resamples=5), {"code": 1.0})
    found = best(objective, np.array([0.0, 0.1, 0.3]), np.ones(3))
    np.testing.assert_allclose(found.shares_d, [0.6, 0.1, 0.3], atol=1e-3)
