from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from megatron_kaiyuan.optim.average import ema_weights, one_minus_sqrt_weights, weighted_mean

GAPS = st.lists(st.integers(1, 1000), max_size=9)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9))
def test_equal_weights_give_the_mean(values: list[float]) -> None:
    checkpoints = ({"a": torch.tensor([value, -value])} for value in values)
    found = weighted_mean(checkpoints, [1.0] * len(values))["a"]
    expected = torch.tensor([sum(values) / len(values)], dtype=torch.float64).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.cat([expected, -expected]))


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(0.01, 100)), min_size=1, max_size=9))
def test_weights_give_the_mean_of_numpy(pairs: list[tuple[float, float]]) -> None:
    values, weights = map(list, zip(*pairs, strict=True))
    found = weighted_mean(({"a": torch.tensor(value)} for value in values), weights)["a"].item()
    assert found == pytest.approx(np.average(np.float64(values), weights=weights), rel=1e-6, abs=1e-6)


def test_half_precision_checkpoints_are_summed_exactly() -> None:
    weights = [{"a": torch.tensor([60000.0]).half()} for _ in range(8)]
    assert weighted_mean(weights, [1.0] * 8)["a"].item() == torch.tensor(60000.0).half().item()


@given(GAPS, st.floats(0.05, 0.999), st.sampled_from([1.0, 10.0, 1000.0]))
def test_an_ema_is_that_of_the_recursion_without_its_start(gaps: list[int], decay: float, per: float) -> None:
    """After each checkpoint: the old average and its weight decay over the distance, the checkpoint comes with 1."""
    positions = [0, *itertools.accumulate(gaps)]
    values = np.cos(positions)
    average, total = 0.0, 0.0
    for index, value in enumerate(values):
        kept = total * decay ** (gaps[index - 1] / per) if index else 0.0
        total = kept + 1.0
        average += (value - average) / total
    weights = ema_weights(positions, decay, per)
    assert sum(weights) == pytest.approx(1) and np.dot(weights, values) == pytest.approx(average, abs=1e-9)


@given(GAPS)
def test_one_minus_sqrt_weights_are_a_run_whose_rate_decays(gaps: list[int]) -> None:
    """Updates u_i of a constant rate, scaled by the mean of the decay over each of them, lead to the same weights."""
    positions = [100, *(100 + np.cumsum(gaps))] if gaps else [100]
    updates = np.sin(np.arange(len(gaps)) + 1.0)
    checkpoints = np.concatenate([[3.0], 3.0 + np.cumsum(updates)])
    length = positions[-1] - positions[0]
    shares = [
        quad(lambda x: 1 - ((x - 100) / length) ** 0.5, start, stop)[0] / (stop - start)
        for start, stop in itertools.pairwise(positions)
    ]
    weights = one_minus_sqrt_weights(positions)
    assert min(weights) >= 0 and sum(weights) == pytest.approx(1)
    assert np.dot(weights, checkpoints) == pytest.approx(3.0 + np.dot(updates, shares), abs=1e-7)
