"""Time limits of a recipe on a device; the watchdog's always comes before that of collectives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.cluster.limits import TimeLimits, time_limits
from megatron_kaiyuan.config import FaultsConfig, ParallelConfig
from megatron_kaiyuan.platform.cpu import CpuPlatform

seconds = st.none() | st.floats(min_value=1, max_value=1e6)


def limits(hang: float | None, minutes: float | None, compiles: bool = False) -> TimeLimits:
    device = CpuPlatform()
    device.compiles_operators = compiles
    return time_limits(device, ParallelConfig(timeout_minutes=minutes), FaultsConfig(hang_timeout_seconds=hang))


def test_defaults() -> None:
    assert limits(None, None) == TimeLimits(300, 600)
    assert limits(None, None, compiles=True) == TimeLimits(900, 1800)
    assert time_limits(CpuPlatform(), ParallelConfig()) == TimeLimits(300, 600)


def test_what_is_set_stays() -> None:
    assert limits(5, 0.1, compiles=True) == TimeLimits(5, 6)
    assert limits(5, None) == TimeLimits(5, 600)
    assert limits(1000, None) == TimeLimits(1000, 2000)
    assert limits(None, 1) == TimeLimits(30, 60)
    assert limits(None, 60) == TimeLimits(300, 3600)


@given(hang=seconds, minutes=seconds, compiles=st.booleans())
def test_the_watchdog_comes_first(hang: float | None, minutes: float | None, compiles: bool) -> None:
    found = limits(hang, minutes, compiles)
    if hang is None or minutes is None:
        assert found.hang < found.collective
