"""How far a list of runs is, on standard error."""

from __future__ import annotations

import math
import statistics
import sys
from datetime import timedelta


class Progress:
    """Counts runs and prints a line after each.

    Args:
        total: different runs of the list.
        reused: of these, whole from before.
        slots: runs that are trained at the same time.
    """

    def __init__(self, total: int, reused: int, slots: int):
        self._total, self._reused, self._slots = total, reused, slots
        self._done, self._failed = reused, 0
        self._seconds: list[float] = []
        self._print()

    def done(self, seconds: float | None) -> None:
        """A run is whole.

        Args:
            seconds: that it took here; None: another queue trained it.
        """
        self._done += 1
        if seconds is not None:
            self._seconds.append(seconds)
        self._print()

    def failed(self, name: str, why: str) -> None:
        """A run has ended without a result."""
        self._failed += 1
        print(f"queue: run {name!r} failed: {why}", file=sys.stderr, flush=True)
        self._print()

    def _print(self) -> None:
        left = self._total - self._done - self._failed
        parts = [f"{self._done} of {self._total} runs done"]
        if self._reused:
            parts.append(f"{self._reused} reused")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if left and self._seconds:
            seconds = statistics.fmean(self._seconds) * math.ceil(left / self._slots)
            parts.append(f"about {timedelta(seconds=round(seconds))} left on {self._slots} slots")
        print(f"queue: {', '.join(parts)}", file=sys.stderr, flush=True)
