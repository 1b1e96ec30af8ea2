"""`monitor.notify_command`: a user's command for each event of a run, in a process that training never waits for.

Events go through a pipe to `notifier.py`, a process in a session of its own. The pipe is the queue: an event that finds
it full is dropped. When the job ends, however it ends, the pipe closes, and the notifier reports that too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.monitor.sinks import Row, Sink

log = logging.getLogger(__name__)

# At the end the last event is given so long; the notifier outlives this process.
_END_SECONDS = 5.0
# A line up to this length (PIPE_BUF of Linux) is written whole or not at all.
_LONGEST_LINE = 4096
_LONGEST_TEXT = 500
_EVENTS = {"start": "start", "resume": "start", "checkpoint": "save", "bad_step": "bad_step"}


class Notify(Sink):
    """Reports start, save, bad_step, stop and end of a run; `report_hang` is for the watchdog.

    Args:
        monitor: with a `notify_command`.
    """

    def __init__(self, run_dir: Path, monitor: MonitorConfig):
        self._wanted = monitor.notify_events
        self._step = 0
        self._dropped = 0
        self._process = _start_notifier(run_dir, monitor)

    def write(self, row: Row) -> None:
        self._step = row["step"]
        self._send({"step": self._step})
        self._warn_of_failures()

    def event(self, row: Row) -> None:
        self._step = row.get("step", self._step)
        kind = _EVENTS.get(row["event"])
        if row["event"] == "stop":
            kind = "end" if row["finished"] else "stop"
        if kind is not None:
            wanted = kind if kind in self._wanted else None
            self._send({"event": wanted, "ends": kind in ("stop", "end"), "step": self._step, "details": row})
        self._warn_of_failures()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._warn_of_failures()
        if self._dropped:
            log.warning(
                f"monitor.notify_command: {self._dropped} events were dropped, as the command was too slow for them"
            )

    def _send(self, message: dict[str, Any]) -> None:
        if not _send(self._process, message):
            self._dropped += "event" in message

    def _warn_of_failures(self) -> None:
        """What the notifier has printed since the last look: one line for each command that failed."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._process.stdout.fileno(), 1 << 16).decode(errors="replace").splitlines():
                log.warning(f"monitor.notify_command: {line}")


def report_hang(run_dir: Path, monitor: MonitorConfig, message: str) -> None:
    """From the rank whose watchdog has found a hang, which is about to end: no other process of it reports.

    Args:
        message: which rank the others wait for.
    """
    if monitor.notify_command is None or "hang" not in monitor.notify_events:
        return
    process = _start_notifier(run_dir, monitor)
    _send(process, {"event": "hang", "ends": True, "step": None, "details": {"message": message, "time": time.time()}})
    assert process.stdin is not None
    process.stdin.close()


def _start_notifier(run_dir: Path, monitor: MonitorConfig) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_kaiyuan.monitor.notifier"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Signals for the job's group are not for it: it reports the end that they bring.
        start_new_session=True,
        bufsize=0,
    )
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    # Not among its arguments, which every user of the machine can read: commands hold addresses that are secrets.
    settings = {
        "command": monitor.notify_command,
        "seconds": monitor.notify_timeout_seconds,
        "end": "end" in monitor.notify_events,
        "run_dir": str(run_dir.absolute()),
        "host": socket.gethostname(),
    }
    if not _send(process, settings):
        process.stdin.close()
        raise ValueError(
            f"monitor.notify_command is longer than {_LONGEST_LINE - 500} characters; put it into a script"
        )
    return process


def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> bool:
    """Whether the pipe took it; never waits."""
    if details := message.get("details"):
        texts = {name: text[:_LONGEST_TEXT] if isinstance(text, str) else text for name, text in details.items()}
        message = {**message, "details": {name: value for name, value in texts.items() if name != "documents"}}
    line = json.dumps(message).encode() + b"\n"
    assert process.stdin is not None
    try:
        return len(line) <= _LONGEST_LINE and process.stdin.write(line) == len(line)
    except OSError:  # the notifier was killed: training continues without it
        return False
