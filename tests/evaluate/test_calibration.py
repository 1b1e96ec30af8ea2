from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from megatron_kaiyuan.evaluate.calibration import BINS, Answer, calibration


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.booleans()), min_size=1, max_size=200))
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    # Its bins have their lower end, ours their upper one: on an edge the two may differ.
    pairs = [
        (confidence, right) for confidence, right in pairs if abs(confidence * BINS - round(confidence * BINS)) > 1e-6
    ]
    if not pairs:
        return
    confidences, right = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    accuracies, means = calibration_curve(right, confidences, n_bins=BINS)
    counts = np.histogram(confidences, BINS, (0, 1))[0]
    found = calibration([Answer(*pair) for pair in pairs])
    assert [one["items"] for one in found["bins"]] == counts[counts > 0].tolist()
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx(accuracies)
    assert [one["confidence"] for one in found["bins"]] == pytest.approx(means)
    error = (counts[counts > 0] / counts.sum() * abs(accuracies - means)).sum()
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert found["accuracy"] == pytest.approx(right.mean()) and found["confidence"] == pytest.approx(confidences.mean())
    assert found["items"] == len(pairs)


def test_known_cases() -> None:
    sure_and_right = calibration([Answer(1.0, True)] * 3)
    assert sure_and_right["expected_calibration_error"] == 0
    assert sure_and_right["bins"] == [{"from": 0.9, "to": 1.0, "items": 3, "confidence": 1.0, "accuracy": 1.0}]
    assert calibration([Answer(1.0, False)] * 3)["expected_calibration_error"] == 1
    # A coin that says so; an edge belongs to the bin below it.
    coin = calibration([Answer(0.5, True), Answer(0.5, False)])
    assert coin["expected_calibration_error"] == 0 and [one["to"] for one in coin["bins"]] == [0.5]
    # Three of four right at 0.9, one of two at 0.6: 4/6 * 0.15 + 2/6 * 0.1.
    mixed = [Answer(0.9, index > 0) for index in range(4)] + [Answer(0.6, True), Answer(0.6, False)]
    assert calibration(mixed)["expected_calibration_error"] == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.1)
