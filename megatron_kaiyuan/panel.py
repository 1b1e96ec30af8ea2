"""Some lines at the foot of a terminal that are redrawn in place; everything else that is written scrolls above them.

The cursor rests at the end of the last line, so that a process that is killed or stopped leaves a whole panel and a
shell writes below it. Where it is not sure how many rows the panel takes (the window was made narrower than a line, the
process was stopped and continued), the panel stays where it is and begins again below: no other line is ever erased.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from megatron_kaiyuan import streams

_ERASE_BELOW = "\x1b[J"
_DEFAULT_COLUMNS, _DEFAULT_ROWS = 80, 24


class Line(NamedTuple):
    """A line of a panel.

    Attributes:
        text: with its colours.
        width: columns that it takes.
    """

    text: str
    width: int


# Lines for a terminal of so many columns.
Render = Callable[[int], list[Line]]


class Panel:
    """The panel of this process's standard error, for any number of threads. A context manager.

    It is drawn only while the process has the terminal: not while it runs in a shell's background, and not in a session
    of its own, as torchrun's ranks are, where other processes write to the same terminal.
    """

    def __init__(self) -> None:
        self._channel = streams.Channel(2)
        self._channel.optional = True
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._render: Render | None = None
        self._drawn: list[Line] = []
        self._cut_off = False
        self._continued: signal.Handlers | Callable[..., object] | int | None = None

    def __enter__(self) -> Panel:
        streams.keep_free(self)
        # Signals can be caught by the main thread only; without, a stop leaves a torn panel.
        with contextlib.suppress(ValueError):
            self._continued = signal.signal(signal.SIGCONT, lambda number, frame: self._drawn.clear())
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the panel as it is, and the cursor below it."""
        streams.keep_free(None)
        with self._lock:
            if self._drawn:
                self._write("\n")
            self._render = None
            self._drawn.clear()
        if self._continued is not None:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGCONT, self._continued)

    def has_terminal(self) -> bool:
        """Return whether the panel can be drawn now."""
        if self._channel.error is not None:
            return False
        try:
            return os.tcgetpgrp(2) == os.getpgrp()
        except OSError:
            return False

    def show(self, render: Render) -> None:
        """Draw these lines in the place of those before."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with self._lock:
            self._erase()
            self._render = render
            if self._cut_off:
                self._write("\n")
                self._cut_off = False
            self._draw()

    @contextlib.contextmanager
    def lifted(self, content: memoryview) -> Iterator[None]:
        """Take the panel off while this content is written, and draw it again once a line has ended."""
        if os.getpid() != self._process:
            # A fork that writes: the panel is its parent's.
            yield
            return
        with self._lock:
            self._erase()
            yield
            self._cut_off = bool(content) and content[-1] not in b"\r\n"
            if not self._cut_off:
                self._draw()

    def give_up_place(self) -> bytes:
        """Return what to write before a message that cannot wait for the lock; the panel begins again below it."""
        if not self._drawn:
            return b""
        self._drawn = []
        return b"\n"

    def _draw(self) -> None:
        if self._render is None or not self.has_terminal():
            return
        columns, rows = _size()
        # One column stays free: what a full line does to the cursor differs from terminal to terminal.
        self._drawn = self._render(columns - 1)[: max(rows - 1, 1)]
        self._write("\r" + "\n\r".join(line.text for line in self._drawn))

    def _erase(self) -> None:
        if not self._drawn:
            return
        columns, rows = _size()
        if len(self._drawn) > rows or any(line.width >= columns for line in self._drawn):
            self._write("\n")
        else:
            up = f"\x1b[{len(self._drawn) - 1}A" if len(self._drawn) > 1 else ""
            self._write(f"\r{up}{_ERASE_BELOW}")
        self._drawn = []

    def _write(self, text: str) -> None:
        self._channel.write(text.encode(sys.stderr.encoding or "ascii", "backslashreplace"))


def _size() -> tuple[int, int]:
    """Return columns and rows of the terminal; some report none."""
    try:
        columns, rows = os.get_terminal_size(2)
    except OSError:
        columns, rows = 0, 0
    return columns or _DEFAULT_COLUMNS, rows or _DEFAULT_ROWS
