"""How long a start takes, by part, up to the first step. Needs neither torch nor a device."""

from __future__ import annotations

import logging
import os
import time

log = logging.getLogger(__name__)


class Startup:
    """Seconds of this process's start by part; each part ends where the next one begins.

    The first part begins with the process itself, as Linux reports it: the interpreter's own start is in it.
    """

    def __init__(self) -> None:
        self._began = self._last = _process_start()
        self.parts: dict[str, float] = {}

    def ended(self, part: str) -> None:
        """`part` is what was done since the end of the part before."""
        now = _now()
        self.parts[part] = now - self._last
        log.debug(f"start: {part} took {self.parts[part]:.2f} s")
        self._last = now

    @property
    def seconds(self) -> float:
        """From the start of the process to the end of the last part."""
        return self._last - self._began


def _now() -> float:
    """Seconds since the machine's boot, the clock that /proc counts by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _process_start() -> float:
    with open("/proc/self/stat", encoding="utf-8") as file:
        # Field 22; the second one, the program's name, may hold spaces.
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
