"""What a fit refuses, and the detector of jumps on runs with and without one."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.reach import check_jumps, check_runs, drawn_range, jumps
from tests.helpers.references.mixtures import mixtures

NAMES = ["code", "math", "web", "wiki", "books"]
SLOPES = np.array([-1.0, -0.5, 0.2, 0.4, 0.1])


def losses(shares: np.ndarray, bend: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, len(shares))
    return 2 + np.exp(0.3 + shares @ SLOPES) - bend * np.maximum(shares[:, 3] - 0.2, 0) + noise


def test_runs_that_are_too_few() -> None:
    with pytest.raises(UserError, match="6 runs cannot tell a law of 5 datasets; give at least 7"):
        check_runs(6, 5)
    assert "10 runs for 5 datasets" in (check_runs(10, 5) or "")
    assert check_runs(15, 5) is None


def test_a_jump_is_found_where_it_is() -> None:
    found = []
    for seed in range(3):
        shares = mixtures(48, seed)
        found += [jump for jump in jumps(NAMES, shares, losses(shares, 2.0, seed)) if jump.dataset == "wiki"]
    assert len(found) == 3
    assert all(jump.above < jump.below and 0.02 < jump.share < 0.4 and jump.p_value <= 0.01 for jump in found)


def test_a_law_has_no_jump() -> None:
    """At a level of .01, 6 sets of runs: two false ones have a chance of .002."""
    shares = [mixtures(40, 50 + seed) for seed in range(6)]
    assert sum(bool(jumps(NAMES, each, losses(each, 0.0, seed))) for seed, each in enumerate(shares)) <= 1


def test_the_range_of_the_runs() -> None:
    low, high = drawn_range(np.array([[0.1, 0.9], [0.3, 0.7]]))
    assert low.tolist() == [0.1, 0.7] and high.tolist() == [0.3, 0.9]


def test_runs_that_are_too_few_to_see_a_jump() -> None:
    assert "23 runs: below 24" in (check_jumps(23) or "") and check_jumps(24) is None
    shares = mixtures(9, 0)
    assert jumps(NAMES, shares, losses(shares, 2.0, 0)) == []


def test_curves_that_flatten_out_have_no_jump() -> None:
    """Power laws, which the law's exponential does not fit: more text of its own helps, less text of its own hurts."""
    found = []
    for seed in range(4):
        share = np.linspace(0.05, 0.95, 24)
        noise = np.random.default_rng(seed).normal(0, 0.005, 24)
        for values in (0.3 + 0.2 * share**-0.3, 2.7 + 0.25 * (1.02 - share) ** -0.7):
            found += jumps(["facts", "text"], np.column_stack([share, 1 - share]), values + noise)
    assert len(found) <= 1


def test_a_step_is_found_at_its_beginning_and_is_not_its_mirror_image_s() -> None:
    """A share of text that gives way to facts loses by the same step; text is not what is learned."""
    share = np.linspace(0.05, 0.75, 24)
    for seed in range(3):
        step = 0.9 - 0.1 * share - 0.25 / (1 + np.exp((0.35 - share) / 0.02))
        values = step + np.random.default_rng(seed).normal(0, 0.01, 24)
        (jump,) = jumps(["text", "facts"], np.column_stack([1 - share, share]), values)
        assert jump.dataset == "facts" and 0.2 < jump.share < 0.36
        assert jump.above < 2 * jump.below - 0.5 and jump.p_value <= 0.01
