"""Losses by failures against runs that fail at random, the best interval against a search for it."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning.failures import Assumed, best_interval, losses, lost_part
from megatron_kaiyuan.planning.plan import Plan, make_plan
from megatron_kaiyuan.platform.datasheets import device_named
from tests.helpers.training.small_recipe import KAIYUAN_2B

TOKENS = "train.train_tokens=100_000_000_000"


def planned(gpus: int, *overrides: str) -> Plan:
    return make_plan(Path(KAIYUAN_2B), [TOKENS, *overrides], gpus, device_named("h100"), None)


def simulated(useful: float, interval: float, save: float, restart: float, mtbf: float, write: float = 0.0) -> float:
    """Seconds of a run that fails at random, also while it is started again.

    Args:
        write: seconds after a save's stall until the checkpoint is whole; before, the one before it counts.
    """
    dice = random.Random(f"{interval} {save} {restart} {mtbf} {write}")
    clock = done = kept = 0.0
    next_failure = dice.expovariate(1 / mtbf)
    pending: list[tuple[float, float]] = []

    def fails_within(seconds: float) -> bool:
        nonlocal clock, next_failure
        if clock + seconds < next_failure:
            clock += seconds
            return False
        clock = next_failure
        next_failure = clock + dice.expovariate(1 / mtbf)
        return True

    while done < useful:
        if not fails_within(interval + save):
            done += interval
            pending.append((clock + write, done))
            continue
        kept = max([kept, *(at for whole, at in pending if whole <= clock)])
        pending, done = [], kept
        while fails_within(restart):
            pass
    return clock


@pytest.mark.parametrize(
    ("interval", "save", "restart", "mtbf"),
    [(600, 30, 600, 7200), (3600, 60, 300, 36000), (200, 100, 50, 1000), (5000, 10, 600, 5000)],
)
def test_losses_are_those_of_runs_that_fail_at_random(
    interval: float, save: float, restart: float, mtbf: float
) -> None:
    useful = 3000 * mtbf
    measured = simulated(useful, interval, save, restart, mtbf) / useful - 1
    assert lost_part(interval, save, restart, mtbf) == pytest.approx(measured, rel=0.06)


def test_a_save_that_is_still_being_written_is_lost() -> None:
    """Counted as a longer restart."""
    interval, save, restart, mtbf, write = 1000.0, 2.0, 300.0, 20_000.0, 400.0
    useful = 5000 * mtbf
    measured = simulated(useful, interval, save, restart, mtbf, write) / useful - 1
    assert lost_part(interval, save, restart + write, mtbf) == pytest.approx(measured, rel=0.06)
    assert measured > 1.2 * lost_part(interval, save, restart, mtbf)


@settings(max_examples=60, deadline=None)
@given(mtbf=st.floats(1e3, 1e7), part=st.floats(1e-6, 0.3))
def test_no_interval_loses_less(mtbf: float, part: float) -> None:
    save = part * mtbf
    found = minimize_scalar(lambda log: lost_part(math.exp(log), save, 100.0, mtbf), bounds=(-5, 18), method="bounded")
    best = best_interval(save, mtbf)
    assert lost_part(best, save, 100.0, mtbf) <= found.fun * 1.002 + 1e-9
    # Young's first order, for saves that are short.
    if part < 1e-4:
        assert best == pytest.approx(math.sqrt(2 * save * mtbf), rel=0.02)


def test_a_run_that_fails_before_it_is_saved() -> None:
    assert math.isinf(lost_part(1e6, 10, 10, 1.0)) and math.isinf(lost_part(1, 1, 1e6, 1.0))
    assert best_interval(save=10, mtbf=1) == 1


def test_of_a_plan_by_hand() -> None:
    """1,024 H100s: 50,700 h / 1,024 between failures; 14 bytes a parameter at 2 GB/s, all of it waited for."""
    plan = planned(1024, "checkpoint.asynchronous=false")
    best = plan.layouts[0]
    assert best.speed is not None
    found = losses(plan, best, Assumed())
    assert found is not None
    assert found.mtbf_seconds == pytest.approx(50_700 * 3600 / 1024)
    assert (
        found.saves.write == found.saves.stall == pytest.approx(14 * count_parameters(plan.run.model) / 2e9, rel=0.01)
    )
    interval = 400 * best.speed.step_seconds
    assert found.lost == pytest.approx(lost_part(interval, found.saves.stall, 600, found.mtbf_seconds))
    assert found.best_steps == pytest.approx(
        best_interval(found.saves.stall, found.mtbf_seconds) / best.speed.step_seconds, abs=1
    )
    assert 5 * found.least_lost < found.lost


def test_what_the_user_knows_counts() -> None:
    plan = planned(64)
    best = plan.layouts[0]
    usual, worse = losses(plan, best, Assumed()), losses(plan, best, Assumed(mtbf_hours=500, restart_minutes=60))
    assert usual is not None and worse is not None
    assert worse.mtbf_seconds == 500 * 3600 / 64 and worse.lost > 50 * usual.lost
    slow = losses(plan, best, Assumed(save_seconds=900))
    assert slow is not None and best.speed is not None
    assert slow.saves.write == 900 and slow.saves.stall < 1
    # A save begins when the last one is whole: the first number of steps that is not shorter.
    step = best.speed.step_seconds
    assert (slow.best_steps - 1) * step < 900 <= slow.best_steps * step
    for seconds in (7.1 * step, 7.4 * step, 7.9 * step):
        rounded = losses(plan, best, Assumed(mtbf_hours=1, save_seconds=seconds))
        assert rounded is not None and rounded.best_steps == 8
    every_minute = planned(64, "checkpoint.save_every_minutes=1")
    often = losses(every_minute, every_minute.layouts[0], Assumed())
    assert often is not None and often.steps == round(60 / best.speed.step_seconds)


def test_pipeline_stages_are_saved_once_each() -> None:
    """The same checkpoint in any layout."""
    plan = planned(64, "checkpoint.asynchronous=false")
    found = {layout.shape: losses(plan, layout, Assumed()) for layout in plan.layouts}
    writes = [one.saves.write for one in found.values() if one is not None]
    assert max(writes) < 1.15 * min(writes)
