"""The plan beside published runs, and the figures of devices that come from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.published_data import Run
from benchmarks.published_layouts import SHARES, choices, measured_runs, scatter
from benchmarks.published_runs import across_kinds, all_runs, middle, speed_ratios
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.planning import links
from megatron_kaiyuan.planning.speed import speed
from megatron_kaiyuan.platform.datasheets import DEVICES, Device
from tests.helpers.training.small_recipe import KAIYUAN_2B

OWN = Path("benchmarks/results/train_step.txt")


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return all_runs()


@pytest.fixture(scope="module")
def ratios(runs: list[Run]) -> list[tuple[float, float, float]]:
    return speed_ratios(runs)


def test_published_runs_are_planned_to_a_quarter(runs: list[Run], ratios: list[tuple[float, float, float]]) -> None:
    assert len(runs) == 38
    for run, (_, ratio, _) in zip(runs, ratios, strict=True):
        assert 0.75 <= ratio <= 1.25, (run.published.name, run.published.gpus, ratio)


@pytest.mark.parametrize("name", ["h100", "a100", "910b"])
def test_figures_of_a_device_are_those_of_its_runs(
    name: str, runs: list[Run], ratios: list[tuple[float, float, float]]
) -> None:
    """The span of times holds each run, planned with the utilization of the others, and is hardly wider."""
    device = DEVICES[name]
    mine = [found for run, found in zip(runs, ratios, strict=True) if run.device is device]
    assert device.assumed_mfu == pytest.approx(middle(own for own, _, _ in mine), abs=0.01)
    assert device.mfu_source.startswith(f"{len(mine)} published runs")
    within([ratio for _, _, ratio in mine], device)


def within(left_out: list[float], device: Device) -> None:
    low, high = device.time_spread
    assert low <= min(left_out) < low + 0.05 and high - 0.06 < max(left_out) <= high


def test_a_device_without_runs_takes_those_of_others(runs: list[Run], ratios: list[tuple[float, float, float]]) -> None:
    own = [mfu for mfu, _, _ in ratios]
    assert DEVICES["910a"].assumed_mfu == pytest.approx(middle(own), abs=0.01)
    within(list(across_kinds(runs, own)), DEVICES["910a"])


def test_our_own_step_on_one_h200_is_in_its_span() -> None:
    """Kaiyuan-2B in BF16, eight samples of 4,096 tokens: see `benchmarks/results/train_step.txt`."""
    measured = float(
        re.findall(r"kaiyuan +2031\.9 M parameters +([\d,]+) tokens/s", OWN.read_text())[0].replace(",", "")
    )
    overrides = ["train.global_batch_size=8", "train.micro_batch_size=8", "train.precision=bf16"]
    device = DEVICES["h200"]
    planned = speed(load_run(Path(KAIYUAN_2B), overrides), 1, device, device.assumed_mfu)
    assert planned is not None
    low, _ = device.time_spread
    assert low <= planned.tokens_per_second / measured < low + 0.05


def test_the_layout_ranked_first_is_near_the_fastest_that_was_measured() -> None:
    groups = measured_runs()
    found = {share: choices(groups, share) for share in SHARES}
    assert min(SHARES, key=lambda share: scatter(found[share])) == links.SHARED_CARDS
    mine = found[links.SHARED_CARDS]
    assert sum(choice.layouts for choice in mine) > 120 and len(mine) == 10
    for choice in mine:
        assert choice.chosen <= 1.1 * choice.best, choice
