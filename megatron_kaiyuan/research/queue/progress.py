"""How far a list of runs is, on standard error."""

from __future__ import annotations

import logging
import math
import statistics
import time
from datetime import timedelta

log = logging.getLogger(__name__)


class RunCounter:
    """Counts runs and prints a line after each.

    Args:
        total: different runs of the list.
        reused: of these, whole from before.
        slots: runs that are trained at the same time; None: not known, so that the time left is estimated from
            the pace at which runs have ended.
    """

    def __init__(self, total: int, reused: int, slots: int | None):
        self._total, self._reused, self._slots = total, reused, slots
        self._done, self._failed = reused, 0
        self._ends: list[float] = []
        self._seconds: list[float] = []
        self._print()

    def done(self, seconds: float | None) -> None:
        """A run is whole.

        Args:
            seconds: that it took here; None: another queue trained it.
        """
        self._done += 1
        self._ends.append(time.monotonic())
        if seconds is not None:
            self._seconds.append(seconds)
        self._print()

    def failed(self, name: str, why: str) -> None:
        """A run has ended without a result."""
        self._failed += 1
        log.warning(f"queue: run {name!r} failed: {why}")
        self._print()

    def _print(self) -> None:
        left = self._total - self._done - self._failed
        parts = [f"{self._done} of {self._total} runs done"]
        if self._reused:
            parts.append(f"{self._reused} reused")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if left:
            parts += self._time_left(left)
        log.info(f"queue: {', '.join(parts)}")

    def _time_left(self, left: int) -> list[str]:
        if self._slots is not None:
            if not self._seconds:
                return []
            seconds, where = statistics.fmean(self._seconds) * math.ceil(left / self._slots), f" on {self._slots} slots"
        else:
            # The first end closes the wait for Slurm's turn and for imports, and opens an interval.
            if len(self._ends) < 2:
                return []
            seconds, where = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * left, ""
        return [f"about {timedelta(seconds=round(seconds))} left{where}"]
