"""What the heat maps show: the pictures' own fields, against the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.monitor_rows import Layout, Monitored, read_monitor_row
from megatron_kaiyuan.report.monitored import _heat_map, monitor_figures
from megatron_kaiyuan.report.table import Table
from tests.helpers.training.sample_run import monitor_row, step_row


def history(*steps: int) -> History:
    return history_of([monitor_row(step) for step in steps])


def history_of(rows: list[dict[str, Any]]) -> History:
    layouts: dict[Layout, Layout] = {}
    read = {row["step"]: read_monitor_row(row, layouts) for row in rows}
    return History(rows=Table([step_row(max(read))]), monitored=Monitored(read))


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
    values = history(10, 40).monitored.headroom("residual")
    assert values.shape == (4, 2) and values[3, 1] == -math.inf
    assert values[0, 0] == pytest.approx(math.log2(65504 / 10), rel=1e-7)
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
    assert history(10, 20).monitored.least_headroom() == pytest.approx(math.log2(65504 / (2.0 * 4 * 20)), rel=1e-7)
    assert history(10, 40).monitored.least_headroom() == -math.inf


def test_a_run_that_was_never_finite_has_its_pictures() -> None:
    assert len(list(monitor_figures(history(40), []))) == 4
    broken = monitor_row(10)
    for figures in broken["activations"].values():
        figures.update({name: [None] * len(values) for name, values in figures.items()})
    assert len(list(monitor_figures(history_of([broken]), []))) == 4


def test_figures_of_a_row_are_those_that_were_written() -> None:
    rows = [monitor_row(step) for step in (10, 20, 40)]
    seen = history_of(rows).monitored
    assert seen.tensors == list(rows[0]["activations"]) and seen.tokens.tolist() == [row["tokens"] for row in rows]

    def written(row: dict[str, Any], tensor: str, figure: str) -> list[float]:
        return [-math.inf if value is None else value for value in row["activations"][tensor][figure]]

    for tensor in seen.tensors:
        expected = [written(row, tensor, "headroom_bits") for row in rows]
        np.testing.assert_allclose(seen.headroom(tensor).T, expected, rtol=1e-6)
    for tensor in ("embedding", "residual"):
        np.testing.assert_allclose(seen.size(tensor).T, [written(row, tensor, "l1") for row in rows], rtol=1e-6)
    np.testing.assert_allclose(seen.updates("qkv"), [1e-4, 5e-5, math.nan], rtol=1e-6)


def test_rows_of_another_layout_than_the_last_are_left_out() -> None:
    early = monitor_row(10)
    del early["activations"]["query"]
    seen = history_of([early, monitor_row(20)]).monitored
    assert (len(seen), seen.others, seen.tokens.tolist()) == (1, 1, [20 * 4096])


@pytest.mark.parametrize("remove", [("activations", "residual", "l1"), ("update_to_weight", "qkv"), ("activations",)])
def test_a_row_that_lacks_a_figure_is_damaged(remove: tuple[str, ...]) -> None:
    row = monitor_row(10)
    inner = row
    for name in remove[:-1]:
        inner = inner[name]
    del inner[remove[-1]]
    assert read_monitor_row(row, {}) is None
    unequal = monitor_row(10)
    unequal["activations"]["residual"]["l1"].pop()
    assert read_monitor_row(unequal, {}) is None
