from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.config import PhaseConfig
from megatron_kaiyuan.optim.schedule import Schedule


def phase(peak: float, final: float | None = None, **more: object) -> PhaseConfig:
    return PhaseConfig(path=Path("phase"), peak_lr=peak, final_lr=final, **more)  # type: ignore[arg-type]


def test_warm_up_stable_next_phase_decay() -> None:
    schedule = Schedule([phase(5e-3), phase(3e-3, 6e-4, decay_fraction=0.2)], [1000, 1000], warmup_tokens=100)
    assert schedule.learning_rate(50) == pytest.approx(2.5e-3)
    assert schedule.learning_rate(100) == schedule.learning_rate(1000) == 5e-3
    assert schedule.learning_rate(1001) == schedule.learning_rate(1800) == 3e-3
    assert schedule.learning_rate(1900) == pytest.approx(6e-4 + 2.4e-3 * (1 - math.sqrt(0.5)))
    assert schedule.learning_rate(2000) == pytest.approx(6e-4)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("one_minus_sqrt", 1 - 0.5**0.5)])
def test_shapes(shape: str, middle: float) -> None:
    schedule = Schedule([phase(1.0, 0.5, decay_fraction=1.0, decay_shape=shape)], [100], 0)
    assert schedule.learning_rate(50) == pytest.approx(0.5 + 0.5 * middle)
    assert schedule.learning_rate(100) == pytest.approx(0.5)


@given(st.integers(1, 10**13), st.floats(0, 1), st.integers(0, 10**13), st.data())
def test_between_final_and_peak_everywhere(tokens: int, fraction: float, warmup: int, data: st.DataObject) -> None:
    schedule = Schedule([phase(3e-3, 6e-4, decay_fraction=fraction)], [tokens], warmup)
    position = data.draw(st.integers(1, tokens))
    rate = schedule.learning_rate(position)
    assert 0 < rate <= 3e-3 * (1 + 1e-9)
    if position >= warmup:
        assert rate >= 6e-4 * (1 - 1e-9)


def test_a_schedule_of_another_length() -> None:
    """Cut short it stays where it ends, inside a phase or before one; a longer one decays later."""
    phases = [phase(5e-3), phase(3e-3, 6e-4, decay_fraction=0.5)]
    short = Schedule(phases, [1000, 1000], 100, schedule_tokens=1400)
    assert short.learning_rate(1200) == 3e-3
    assert short.learning_rate(1300) == pytest.approx(6e-4 + 2.4e-3 * (1 - math.sqrt(0.5)))
    assert short.learning_rate(1400) == short.learning_rate(2000) == pytest.approx(6e-4)
    one_phase = Schedule(phases, [1000, 1000], 100, schedule_tokens=700)
    assert one_phase.learning_rate(700) == one_phase.learning_rate(1900) == 5e-3
    long = Schedule(phases, [1000, 1000], 100, schedule_tokens=3000)
    assert long.learning_rate(2000) == 3e-3
    assert long.learning_rate(2500) == pytest.approx(6e-4 + 2.4e-3 * (1 - math.sqrt(0.5)))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=4), st.integers(1, 2500))
def test_the_length_of_the_phases_is_the_default(lengths: list[int], position: int) -> None:
    phases = [phase(2.0 - index / 4, 0.5) for index in range(len(lengths))]
    default, named = Schedule(phases, lengths, 7), Schedule(phases, lengths, 7, sum(lengths))
    assert default.learning_rate(position) == named.learning_rate(position)
