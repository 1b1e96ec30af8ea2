"""Obeys commands (`pseudo_terminal.py`): writes rows, events and other output of a run to its terminal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

from megatron_kaiyuan import logs
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.monitor.terminal import open_terminal
from megatron_kaiyuan.streams import make_output_optional

# `pseudo_terminal.py` waits for it.
MARK = b"\x1b]2;done\x07"


def main(commands: int, answers: int) -> None:
    # As under nohup: else the end of the terminal ends the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    make_output_optional()
    logs.set_up()
    sinks = open_sink()
    answer(answers)
    for line in os.fdopen(commands):
        name, *values = json.loads(line)
        if name == "open":
            sinks = open_sink()
        else:
            obey(sinks, name, *values)
        answer(answers)


def answer(answers: int) -> None:
    """On the terminal too: what was written before it has arrived with it."""
    with contextlib.suppress(OSError):
        os.write(2, MARK)
    os.write(answers, b".")


def open_sink() -> Sinks:
    return Sinks([lambda: open_terminal(1000, alone="NOT_ALONE" not in os.environ)])


def obey(sinks: Sinks, name: str, *values: Any) -> None:
    if name == "row":
        sinks.write(values[0])
    elif name == "event":
        sinks.event(values[0], **values[1])
    elif name == "show":
        sinks.show(values)
    elif name == "out":
        sys.stdout.write(values[0])
        sys.stdout.flush()
    elif name == "err":
        sys.stderr.write(values[0])
        sys.stderr.flush()
    elif name == "at once":
        logs.write_at_once(values[0])
    elif name == "close":
        sinks.close()


main(int(sys.argv[1]), int(sys.argv[2]))
