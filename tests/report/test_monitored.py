"""What the heat maps show: the pictures' own fields, against the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.monitored import _heat_map, _layers, least_headroom, monitor_figures
from megatron_kaiyuan.report.table import Table
from tests.helpers.training.sample_run import monitor_row, step_row


def history(*steps: int) -> History:
    return History(rows=Table([step_row(max(steps))]), monitored=[monitor_row(step) for step in steps])


def fields(edges: np.ndarray, values: np.ndarray, limits: tuple[float, float] | None = (0, 16)) -> np.ma.MaskedArray:
    """The colours' numbers of a heat map, [layers, columns]."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    _heat_map(axes, edges, values, np.min, "bits", limits=limits)
    mesh: Any
    (mesh,) = axes.collections
    assert mesh.get_coordinates()[0, [0, -1], 0].tolist() == [edges[0], edges[-1]]
    return mesh.get_array().reshape(len(values), -1)


def test_a_field_is_the_layer_s_figure_and_what_is_not_finite_is_marked() -> None:
    rows = history(10, 40).monitored
    values = _layers(rows, "residual", "headroom_bits")
    assert values.shape == (4, 2) and values[0, 0] == math.log2(65504 / 10) and values[3, 1] == -math.inf
    shown = fields(np.array([0.0, 1.0, 4.0]), values)
    assert shown.mask.tolist() == [[False, False]] * 3 + [[False, True]]
    np.testing.assert_array_equal(shown.compressed(), values[np.isfinite(values)])


@pytest.mark.parametrize("columns", [1, 399, 401, 1000])
def test_many_steps_become_few_columns_and_the_worst_stays(columns: int) -> None:
    values = np.random.default_rng(0).uniform(1, 16, (3, columns))
    values[1, -1] = 0.5
    shown = fields(np.arange(columns + 1.0), values)
    assert shown.shape[1] <= 400 and shown.min() == 0.5
    assert shown[1].argmin() == shown.shape[1] - 1


def test_least_headroom_is_over_all_tensors_and_steps() -> None:
    assert least_headroom(history(10, 20)) == pytest.approx(math.log2(65504 / (2.0 * 4 * 20)), abs=1e-9)
    assert least_headroom(history(10, 40)) == -math.inf


def test_a_run_that_was_never_finite_has_its_pictures() -> None:
    assert len(list(monitor_figures(history(40), []))) == 4
    broken = history(10)
    for figures in broken.monitored[0]["activations"].values():
        figures.update({name: [None] * len(values) for name, values in figures.items()})
    assert len(list(monitor_figures(broken, []))) == 4
