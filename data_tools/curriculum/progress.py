"""How far the build of a phase is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 60.0


class Progress:
    """Documents that one step of a build has passed. A context manager.

    Args:
        what: the step, as "phase_2: read and sort".
        total: documents of the whole step.
    """

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(desc=what, total=total, unit=" documents", unit_scale=True, disable=not terminal)
        self._next_line = float("inf") if terminal else time.monotonic() + _LINE_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def reach(self, done: int) -> None:
        """So many documents are done in all."""
        self._bar.update(done - self._done)
        self._done = done
        if time.monotonic() >= self._next_line:
            self._next_line += _LINE_SECONDS
            print(f"{self._what}: {done:,} of {self._total:,} documents", file=sys.stderr, flush=True)

    def advance(self, documents: int) -> None:
        """So many more are done."""
        self.reach(self._done + documents)
