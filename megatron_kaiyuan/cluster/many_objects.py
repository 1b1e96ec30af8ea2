"""Lists with objects of every rank: Python's search for cycles is paused while they are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector for the body, or as a decorator.

    While objects become more and more, it looks at all of them again and again: of 8,192 ranks' plans of a save that
    is nine tenths of the time that unpickling takes. What has no cycle is freed all the same.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
