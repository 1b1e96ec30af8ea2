"""Lines of those who wait: for whom, after half a minute, and again with the time that has passed. Needs no torch."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from megatron_kaiyuan.logs import log_at_once

FIRST_SECONDS = 30.0
_AGAIN_SECONDS = 60.0


class Waiting:
    """A wait that looks again and again, and calls `look` each time.

    Args:
        for_whom: a phrase such as "rank 0 at node0:29500", or what finds it when a line is due.
        first: seconds before the first line.
    """

    def __init__(self, for_whom: str | Callable[[], str], first: float = FIRST_SECONDS):
        self._for_whom = for_whom
        self._began = time.monotonic()
        self._due = self._began + first

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> None:
        """Print a line if one is due."""
        if time.monotonic() < self._due:
            return
        whom = self._for_whom if isinstance(self._for_whom, str) else self._for_whom()
        log_at_once(logging.INFO, f"waiting for {whom}, {self.seconds:.0f} s by now")
        self._due = time.monotonic() + _AGAIN_SECONDS


@contextlib.contextmanager
def waiting(for_whom: str | Callable[[], str], first: float = FIRST_SECONDS) -> Iterator[None]:
    """The same for a call that waits inside a library: a thread prints while the body of the `with` lasts."""
    wait, over = Waiting(for_whom, first), threading.Event()

    def watch() -> None:
        while not over.wait(min(1.0, first)):
            wait.look()

    thread = threading.Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
