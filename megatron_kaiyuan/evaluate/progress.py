"""How far an evaluation is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 60.0


class Progress:
    """Counts what one stage has done. A context manager.

    Args:
        what: the stage, as "held-out text".
        unit: what is counted, in the plural.
        total: how many there are; None: lm-eval, which counts by itself on a terminal, knows.
    """

    def __init__(self, what: str, unit: str, total: int | None = None):
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(
            desc=f"evaluate: {what}", total=total, unit=f" {unit}", unit_scale=True, disable=not terminal or not total
        )
        self._next_line = float("inf") if terminal else time.monotonic() + _LINE_SECONDS
        # lm-eval's own notes and bars are turned away from `sys.stderr` meanwhile.
        self._stream = sys.stderr

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(count)
        if time.monotonic() >= self._next_line:
            self._next_line += _LINE_SECONDS
            of = "" if self._total is None else f" of {self._total:,}"
            print(f"evaluate: {self._what}: {self._done:,}{of} {self._unit}", file=self._stream, flush=True)
