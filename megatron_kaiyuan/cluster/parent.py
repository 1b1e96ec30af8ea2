"""A process that ends with the one that started it.

A rank whose launcher was killed (SIGKILL, no memory) waits in a rendezvous for ever, or keeps writing into a run that
has been started again elsewhere. No launcher can prevent that; the rank can.

    python -m megatron_kaiyuan.cluster.parent PID COMMAND...

becomes the command, which gets SIGTERM when process PID, its parent, has ended. The launch scripts start with it what
is to end with them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

# Set by what starts ranks: its process id, or 0 where it is not the parent of all of them, as on other hosts.
VARIABLE = "KAIYUAN_PARENT"
PR_SET_PDEATHSIG = 1  # prctl(2)
_PERIOD_SECONDS = 1.0


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """End this rank, at once and without saving, when its launcher ends.

    Only where the launcher wants it: ranks that were started by hand may outlive the shell, and msrun without --join
    leaves its workers on purpose.
    """
    if VARIABLE in environ:
        end_with_parent(signal.SIGKILL, int(environ[VARIABLE]))


def end_with_parent(number: signal.Signals, expected: int = 0) -> None:
    """Let this process get a signal when its parent ends, also when it has ended already.

    Args:
        expected: an ancestor that must be there still; 0 if none is known.
    """
    parent = os.getppid()
    # The kernel sends the signal at the end of the parent's thread that forked, not of the parent.
    if _forked_by_main_thread(parent):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    else:
        threading.Thread(target=_watch, args=(parent, number), daemon=True, name="parent's end").start()
    # Of an end before these lines the kernel says nothing.
    if os.getppid() != parent or (expected and expected not in [one.pid for one in psutil.Process().parents()]):
        os.kill(os.getpid(), number)


def _forked_by_main_thread(parent: int) -> bool:
    """Return what Linux reports; False where it reports nothing."""
    try:
        return str(os.getpid()) in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return False


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD_SECONDS)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    end_with_parent(signal.SIGTERM, int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
