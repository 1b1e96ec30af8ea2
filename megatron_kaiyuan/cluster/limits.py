"""How long ranks wait for each other before the job is given up."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.config import FaultsConfig, ParallelConfig
from megatron_kaiyuan.platform import Platform


@dataclass(frozen=True)
class TimeLimits:
    """Seconds that a rank may take; the watchdog's come first, as it names the rank that the others wait for.

    Attributes:
        hang: from one step or save to the next.
        collective: for one collective, and for the start up to the end of the first step.
    """

    hang: float
    collective: float


_USUAL = TimeLimits(hang=300, collective=600)
# A first step of a hundred operators, each compiled in seconds to a minute, on hosts that are not equally fast; later
# on, a first batch of another length does the same.
_COMPILING = TimeLimits(hang=900, collective=1800)


def time_limits(platform: Platform, parallel: ParallelConfig, faults: FaultsConfig | None = None) -> TimeLimits:
    """What a recipe sets, and for a field that is null what suits the device and the other field."""
    usual = _COMPILING if platform.compiles_operators else _USUAL
    hang = faults.hang_timeout_seconds if faults is not None else None
    if parallel.timeout_minutes is None:
        collective = max(usual.collective, 2 * (hang or 0))
    else:
        collective = 60 * parallel.timeout_minutes
    return TimeLimits(hang or min(usual.hang, collective / 2), collective)
