"""A process on a terminal of its own, whose screen an emulator keeps (pyte)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyte

_SECONDS = 60.0
# What the process writes to its terminal after each command: a title, which no line shows.
MARK = b"\x1b]2;done\x07"


class PseudoTerminal:
    """Runs a Python file as the foreground job of a terminal; the file obeys commands one after the other.

    Attributes:
        written: all bytes that came from the terminal.
    """

    def __init__(self, script: Path, columns: int = 80, rows: int = 12, variables: Mapping[str, str] | None = None):
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.set_inheritable(commands, True)
            os.set_inheritable(answers, True)
            env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "KAIYUAN_LOG_LEVEL")}
            env |= {"TERM": "xterm", "PYTHONUTF8": "1", **(variables or {})}
            os.execve(sys.executable, [sys.executable, str(script), str(commands), str(answers)], env)
        os.close(commands)
        os.close(answers)
        self._wait()

    def do(self, *command: Any) -> None:
        """Let the file obey a command, and take in what it writes."""
        os.write(self._commands, json.dumps(command).encode() + b"\n")
        self._wait()

    def begin_again(self, columns: int, rows: int) -> None:
        """Clear the screen, and let the file open its terminal again."""
        self.do("close")
        self._screen.reset()
        self._screen.history.top.clear()
        self.resize(columns, rows)
        self.do("open")

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size, as its user would."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def stop_and_continue(self, shell_writes: bytes) -> None:
        """Stop the process, write as a shell would, and continue it."""
        os.kill(self.process, signal.SIGSTOP)
        os.waitpid(self.process, os.WUNTRACED)
        self._feed(shell_writes)
        os.kill(self.process, signal.SIGCONT)

    def hang_up(self) -> None:
        """Take the terminal away."""
        os.close(self._terminal)
        self._terminal = -1

    @property
    def lines(self) -> list[str]:
        """All lines that can be read, those scrolled off too, down to the last that is not empty."""
        width = self._screen.columns
        gone = ["".join(line[column].data for column in range(width)) for line in self._screen.history.top]
        lines = [line.rstrip() for line in [*gone, *self._screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _wait(self) -> None:
        """Take in what comes until the process answers, on its terminal too while there is one."""
        wanted = [self._answers, *([self._terminal] if self._terminal >= 0 else [])]
        found, until = b"", time.monotonic() + _SECONDS
        while wanted and time.monotonic() < until:
            ready, _, _ = select.select(wanted, [], [], 1)
            if self._terminal in ready:
                with contextlib.suppress(OSError):
                    found += os.read(self._terminal, 65536)
                if found.endswith(MARK):
                    wanted.remove(self._terminal)
            if self._answers in ready:
                wanted.remove(self._answers)
                assert os.read(self._answers, 1), f"the process ended: {self.written + found!r}"
        assert not wanted, f"no answer: {self.written + found!r}"
        self._feed(found.removesuffix(MARK))

    def _feed(self, content: bytes) -> None:
        self.written += content
        self._stream.feed(content)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        for descriptor in (self._terminal, self._commands, self._answers):
            with contextlib.suppress(OSError):
                os.close(descriptor)
