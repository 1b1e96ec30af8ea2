"""Logging, set up once for every process: messages go to standard error through it, results are printed.

A result is what a command was asked for: a table, a path, a JSON document, a summary. It goes to standard output by
`print`, whatever the level. Everything else is a message: `logging.getLogger(__name__).info("...")`. Its level decides
whether it is shown and how it begins:

    error    "error: "    always
    warning  "warning: "  not with --quiet
    info     as it is     not with --quiet, and of rank 0 only
    debug    "debug: ", time, rank and module    with --verbose, of every rank

Libraries follow one rule, whether they use logging or `warnings`: their errors are shown as ours, their warnings on
rank 0, their info lines on rank 0 with --verbose. The level also stands in the environment, from which children and the
ranks of a launcher take it. Credentials are removed from every line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import IO, TextIO

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.redaction import redact
from megatron_kaiyuan.streams import write_past_locks

VARIABLE = "KAIYUAN_LOG_LEVEL"
VERBOSE, QUIET = "debug", "error"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Of these packages info lines are shown without --verbose.
_OURS = ("megatron_kaiyuan", "data_tools")


def set_up(level: str | None = None) -> None:
    """Let messages of this process and its children go to standard error; safe to call again.

    Args:
        level: a name above; None: as the environment says, else info.

    Raises:
        UserError: the environment names no level.
    """
    if level is not None:
        os.environ[VARIABLE] = level
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    _handler.threshold = _level_of_environment()
    root.setLevel(max(_handler.threshold, logging.INFO if _handler.threshold == logging.DEBUG else logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(_handler.threshold)
    warnings.showwarning = _log_warning


def set_rank(rank: int, speaks: bool | None = None) -> None:
    """From here on this process is a rank of a job.

    Args:
        speaks: whether its info lines are shown; None: those of rank 0.
    """
    _handler.rank = rank
    _handler.speaks = rank == 0 if speaks is None else speaks


def is_quiet() -> bool:
    """Return whether info lines, and with them progress, are not wanted."""
    return _handler.threshold > logging.INFO


def shows_bars() -> bool:
    """Return whether a progress bar is of use: on a terminal, unless the user wants quiet."""
    return sys.stderr.isatty() and not is_quiet()


def log_at_once(level: int, message: str) -> None:
    """Log a line of any rank past buffers and locks, which a thread that hangs may hold."""
    if level >= _handler.threshold:
        write_at_once(_prefix(level) + message)


def write_at_once(text: str) -> None:
    """Write lines without a level, such as stacks, to standard error in the same way."""
    write_past_locks(f"{redact(text)}\n".encode())


@contextlib.contextmanager
def keep_stream() -> Iterator[None]:
    """In the body messages go to the standard error of now, also where it is replaced to silence a library."""
    before, _handler.stream = _handler.stream, sys.stderr
    try:
        yield
    finally:
        _handler.stream = before


class _Handler(logging.Handler):
    """Writes a line as the module's docstring has it; never an error of its own, whatever became of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = logging.INFO
        self.rank, self.speaks = 0, True
        # None: what standard error is at the time, which streams.py and tests replace.
        self.stream: TextIO | None = None

    def filter(self, record: logging.LogRecord) -> bool:  # type: ignore[override]
        if record.levelno < self.threshold:
            return False
        ours = record.name.partition(".")[0] in _OURS
        if record.levelno >= logging.ERROR or (ours and record.levelno >= logging.WARNING):
            return True
        return self.speaks or (ours and record.levelno < logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        # Where both streams lead to one log, lines keep their order.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            stream: IO[str] = self.stream or sys.stderr
            stream.write(self.format(record) + "\n")
            stream.flush()

    def format(self, record: logging.LogRecord) -> str:
        message = redact(record.getMessage())
        if record.exc_info:
            message += "\n" + redact(logging.Formatter().formatException(record.exc_info))
        if record.levelno >= logging.INFO:
            return _prefix(record.levelno) + message
        now = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"debug: {now}.{int(record.msecs):03d} rank {self.rank} {record.name}: {message}"


_handler = _Handler()


def _prefix(level: int) -> str:
    if level >= logging.ERROR:
        return "error: "
    return "warning: " if level >= logging.WARNING else ""


def _level_of_environment() -> int:
    name = os.environ.get(VARIABLE, "").strip().lower() or "info"
    if name not in _LEVELS:
        raise UserError(f"{VARIABLE}={name}: is not a level; use {', '.join(_LEVELS)}")
    return _LEVELS[name]


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning of Python's `warnings` in one line."""
    text = f"{' '.join(str(message).split())} ({category.__name__}, {filename}:{lineno})"
    logging.getLogger("py.warnings").warning("%s", text)
