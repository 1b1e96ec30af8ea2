"""The exit code of the first rank that fails, for launchers that pass on none, or another rank's.

    python -m megatron_kaiyuan.cluster.first_failure RUN_DIR COMMAND...

runs the command of a rank in its place: with its input, output and environment, and with the signals that this process
gets. It ends with the exit code of the command, as shells count it. Where that is not 0, and no rank has failed
before, the code stays in RUN_DIR/first_failure.json, which the launch script has removed before the start
(`train/ending.py` reads it afterwards). msrun makes 1 of every code, MPICH joins the bits of several, and srun returns
the highest one, which is often that of a rank that it has ended itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from megatron_kaiyuan import logs
from megatron_kaiyuan.cluster.parent import PR_SET_PDEATHSIG, end_with_launcher
from megatron_kaiyuan.exit_codes import FINISHED, STOP_SIGNALS, of_signal

FIRST_FAILURE = "first_failure.json"


def run(command: Sequence[str]) -> int:
    """Run a command to its end, as above; its exit code."""
    waiting: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child is None:
            waiting.append(number)
        else:
            child.send_signal(number)

    for number in STOP_SIGNALS:
        # As nohup wants it.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    prctl = ctypes.CDLL(None).prctl
    # MPICH's ranks talk to their launcher through a descriptor that they inherit. When this process is killed, so is
    # the rank, which the launcher then takes for ended.
    child = subprocess.Popen(command, close_fds=False, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)))
    for early in waiting:
        child.send_signal(early)
    code = child.wait()
    return code if code >= 0 else of_signal(-code)


def leave(run_dir: Path, code: int) -> None:
    """Write a failure into the run folder, unless there is one already, or nothing can be written."""
    with contextlib.suppress(OSError):
        run_dir.mkdir(parents=True, exist_ok=True)
        # "x": of ranks that end at the same moment one is the first, on network file systems too.
        with open(run_dir / FIRST_FAILURE, "x", encoding="utf-8") as file:
            file.write(json.dumps({"code": code, "process": os.getpid(), "time": time.time()}) + "\n")


def main(arguments: Sequence[str]) -> int:
    end_with_launcher(os.environ)
    code = run(arguments[1:])
    if code != FINISHED:
        leave(Path(arguments[0]), code)
    return code


if __name__ == "__main__":
    logs.set_up()
    sys.exit(main(sys.argv[1:]))
