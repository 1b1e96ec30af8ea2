"""Which rank prints an error that several ranks have."""

from __future__ import annotations

import os
import signal
import time

_WAIT_SECONDS = 20


def let_another_speak(code: int) -> None:
    """Wait a little: the launcher stops all ranks when the first one ends, and only that one says why.

    srun's exit code is the highest of its tasks': one that is stopped here ends with its own code, not with SIGTERM's.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))
    time.sleep(_WAIT_SECONDS)
