"""The signals that stop a queue."""

from __future__ import annotations

import signal

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def handled_signals() -> list[signal.Signals]:
    """Those of `STOPPING` that whoever started this process has not asked to ignore, as nohup does with SIGHUP."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
