"""Obeys commands (`pseudo_terminal.py`): writes rows, events and other output of a run to its terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from megatron_kaiyuan import logs
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.monitor.terminal import open_terminal
from megatron_kaiyuan.streams import make_output_optional


def main(commands: int, answers: int) -> None:
    # As under nohup: else the end of the terminal ends the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    make_output_optional()
    logs.set_up()
    sinks = Sinks([lambda: open_terminal(1000)])
    os.write(answers, b".")
    for line in os.fdopen(commands):
        obey(sinks, *json.loads(line))
        os.write(answers, b".")


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
