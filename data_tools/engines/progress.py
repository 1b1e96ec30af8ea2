"""How far a stage is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 60.0


class _Bar(tqdm):  # type: ignore[type-arg]
    # No monitor thread: it would outlive the bar, and a process with several threads cannot fork its pools.
    monitor_interval = 0


class Progress:
    """Counts finished tasks; without a title it shows nothing. A context manager."""

    def __init__(self, title: str, total: int, done: int = 0):
        self._title, self._total, self._done = title, total, done
        self._printed = time.monotonic()
        silent = not (title and sys.stderr.isatty())
        self._bar: Any = _Bar(total=total, initial=done, unit=" tasks", desc=title, leave=False, disable=silent)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, done: int | None = None) -> None:
        """One more task is finished, or `done` in all."""
        self._done = self._done + 1 if done is None else done
        self._bar.update(self._done - self._bar.n)
        if self._title and self._bar.disable and time.monotonic() - self._printed > _LINE_SECONDS:
            self._printed = time.monotonic()
            print(f"{self._title}: {self._done:,} of {self._total:,} tasks", file=sys.stderr, flush=True)
