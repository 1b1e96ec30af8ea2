"""Standard output and standard error as channels that can be lost without stopping the work.

The reader of a pipe ends (`2>&1 | tee log` after ctrl-C), a terminal goes away with its connection, the disk of a log
is full, a reader hangs. Python raises at the next `print`, wherever it stands, or waits for ever. Here the lowest
layer of both streams drops what cannot be written, so that everything above it is covered: prints, log handlers,
progress bars.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
from contextlib import AbstractContextManager
from typing import IO, Protocol

# What an optional channel may keep the work waiting, once for each time that its reader hangs.
_PATIENCE_SECONDS = 10.0


class Foot(Protocol):
    """What stays at the foot of the terminal while others write to it (`panel.py`)."""

    def lifted(self, content: memoryview) -> AbstractContextManager[None]:
        """Take it off while this content is written."""

    def give_up_place(self) -> bytes:
        """Return what to write before a message that cannot wait for `lifted`."""


class Channel(io.FileIO):
    """A descriptor for writing, on which no write fails.

    Attributes:
        optional: nothing depends on this output; a reader that hangs keeps the work waiting for some seconds only.
        error: why something was lost; None: nothing was.
        foot: taken off while something is written; None: nothing is there.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self.optional = False
        self.error: OSError | None = None
        self.foot: Foot | None = None
        self._lost_bytes = 0
        self._hangs = False
        # A write of so many bytes to a pipe that is ready does not wait, and is not torn by another process's.
        self._piece = sys.maxsize if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF

    def write(self, content) -> int:  # type: ignore[no-untyped-def, override]
        """Write all of it, or count what is lost; always the length of `content`."""
        with memoryview(content).cast("B") as view, self.foot.lifted(view) if self.foot else contextlib.nullcontext():
            if self._lost_bytes and self._ready():
                self._report_loss()
            written = 0
            while written < len(view) and self._ready():
                try:
                    written += super().write(view[written : written + self._piece]) or 0
                except OSError as error:
                    self.error = error
                    break
            self._lost_bytes += len(view) - written
            return len(view)

    def _ready(self) -> bool:
        """Wait for the reader."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        if not self.optional:
            return bool(poll.poll())
        ready = bool(poll.poll(0 if self._hangs else 1000 * _PATIENCE_SECONDS))
        self._hangs = not ready
        return ready

    def _report_loss(self) -> None:
        note = f"\nwarning: {self._lost_bytes} bytes of output could not be written here and are lost\n"
        with contextlib.suppress(OSError):
            if super().write(note.encode()):
                self._lost_bytes = 0


def survive_lost_output() -> None:
    """Let no write to standard output or standard error fail from here on; safe to call again.

    A descriptor that was closed is opened on the null device: else the next file to be opened would get its number, and
    whatever is written to that number by C code.
    """
    for number in (0, 1, 2):
        _open_if_closed(number)
    sys.stdout = _replaced(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _replaced(sys.stderr, sys.__stderr__, 2)


def make_output_optional() -> None:
    """For work that matters more than what it prints: wait for no reader that hangs, and forget what was lost."""
    survive_lost_output()
    for stream in (sys.stdout, sys.stderr):
        if (channel := _channel(stream)) is not None:
            channel.optional = True


def keep_free(foot: Foot | None) -> None:
    """Take this off the terminal while the standard streams write to it, from here on; None: nothing is there."""
    for stream in (sys.stdout, sys.stderr):
        if (channel := _channel(stream)) is not None:
            channel.foot = foot if channel.isatty() else None


def reach_terminal() -> bool:
    """Return whether standard error is ours and leads to a terminal that moves its cursor."""
    channel = _channel(sys.stderr)
    return channel is not None and channel.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def write_past_locks(content: bytes) -> None:
    """Write to standard error past buffers and locks, which a thread that hangs may hold."""
    ours, channel = _channel(sys.stderr), Channel(2)
    channel.optional = True
    channel.write((ours.foot.give_up_place() if ours is not None and ours.foot is not None else b"") + content)


def lost_output() -> OSError | None:
    """Why part of standard output could not be written, where that matters; None: it was."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    channel = _channel(sys.stdout)
    return None if channel is None or channel.optional else channel.error


def _replaced(stream: IO[str] | None, original: IO[str] | None, number: int) -> IO[str]:
    """A stream over a Channel in the place of the interpreter's own; one that something else has put there stays."""
    if stream is not original:
        assert stream is not None
        return stream
    settings = {"encoding": "utf-8", "errors": "strict", "line_buffering": number == 2, "write_through": False}
    if isinstance(original, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            original.flush()
        settings = {name: getattr(original, name) for name in settings}
    if settings["errors"] == "strict":
        # A name that the terminal's encoding lacks is not worth a run either.
        settings["errors"] = "backslashreplace"
    return io.TextIOWrapper(io.BufferedWriter(Channel(number)), **settings)  # type: ignore[arg-type]


def _channel(stream: IO[str]) -> Channel | None:
    """The lowest layer of a stream, where it is ours."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Channel) else None


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
