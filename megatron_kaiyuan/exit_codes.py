"""The exit codes of training and of the launch scripts: the one place (docs/launch.md explains them to users).

launch/common.sh holds the few that a script needs before it has found a Python; a test compares them.
"""

from __future__ import annotations

import signal

FINISHED = 0
FAILED = 1
MISTAKE = 2
# A node was found bad, before training or in it (`bad_nodes.json` names it); another try may get a better one.
BAD_NODE = 3
# The signals that let a run save and end, and what a run that was stopped without one of them ends with.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
STOPPED = 128 + signal.SIGTERM
KILLED = 128 + signal.SIGKILL
# What a rank dies of that a library, the driver or the device ends: a failure as any other, worth another start.
CRASH_SIGNALS = (signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)


def of_signal(number: int) -> int:
    """Return the code of a process that a signal stopped, as shells count it; without one, that of SIGTERM."""
    return 128 + number if number else STOPPED


def is_stop(code: int) -> bool:
    """Whether a code says that a run was asked to stop."""
    return code in {of_signal(number) for number in STOP_SIGNALS}
