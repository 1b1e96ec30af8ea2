"""How far long work is: a bar on a terminal, a line a minute elsewhere. Every command that may take long shows one.

Work that only reads files has no place of its own to count in: inside `reading` each checksum counts its bytes.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from megatron_kaiyuan import logs

log = logging.getLogger(__name__)

Item = TypeVar("Item")
_LINE_SECONDS = 60.0
# Of work that is over by then nothing is shown.
_DELAY_SECONDS = 1.0


class _Bar(tqdm):  # type: ignore[type-arg]
    # No monitor thread: it would outlive the bar, and a process with several threads cannot fork its pools.
    monitor_interval = 0


class Progress:
    """Counts work; without a title it shows nothing. A context manager, for any number of threads.

    Args:
        title: what is done, as "phase_2: read and sort".
        total: of the whole work; None: not known.
        unit: what is counted, as "tasks"; "B": bytes.
        done: before this began.
    """

    def __init__(self, title: str, total: int | None, unit: str = "tasks", done: int = 0):
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._lock = threading.Lock()
        self._bar: Any = _Bar(
            total=total,
            initial=done,
            desc=title,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit != "tasks",
            leave=False,
            delay=_DELAY_SECONDS,
            disable=not (title and logs.shows_bars()),
        )
        self._next_line = time.monotonic() + _LINE_SECONDS if title and not sys.stderr.isatty() else float("inf")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, more: int = 1) -> None:
        """So much more is done."""
        with self._lock:
            self._reach(self._done + more)

    def reach(self, done: int) -> None:
        """So much is done in all."""
        with self._lock:
            self._reach(done)

    def make_room(self) -> None:
        """Take the bar off the terminal until there is more to show."""
        with self._lock:
            self._bar.clear()

    def _reach(self, done: int) -> None:
        self._bar.update(done - self._done)
        self._done = done
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            log.info(f"{self._title}: {self._words()}")

    def _words(self) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        if self._unit == "B":
            of = "" if self._total is None else f" of {self._total / 1e9:.2f}"
            return f"{self._done / 1e9:.2f}{of} GB"
        return f"{self._done:,}{of} {self._unit}"


def counted(
    items: Iterable[Item], title: str, unit: str = "documents", size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """The items, counted as they pass; how many there will be is not known.

    Args:
        size: how many of `unit` an item is.
    """
    with Progress(title, None, unit) as progress:
        for item in items:
            yield item
            progress.advance(size(item))


_reading: Progress | None = None


@contextmanager
def reading(title: str, total: int | None) -> Iterator[None]:
    """Show the bytes that `files.checksum` and others report by `has_read` inside the body."""
    global _reading
    outer = _reading
    with Progress(title, total, "B") as progress:
        _reading = progress
        try:
            yield
        finally:
            _reading = outer


def say(line: str) -> None:
    """Print a line of output inside the body of `reading`, in the place of the bar, which continues below it."""
    if _reading is not None:
        _reading.make_room()
    print(line, flush=True)


def has_read(size: int) -> None:
    """So many bytes of a file were read."""
    if _reading is not None:
        _reading.advance(size)
