"""Pre-emption: a signal ends the run after the current step, with a checkpoint, or after a deadline without one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

import torch

from megatron_kaiyuan.train.saving import newest_checkpoint
from megatron_kaiyuan.train.session import Hook, Session
from megatron_kaiyuan.train.votes import Votes

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopOnSignal(Hook):
    """SIGTERM, SIGUSR1 and SIGINT: finish the step, save it, leave a marker and end.

    The handler only sets a flag: the launcher also sends SIGTERM to healthy ranks when another one is dead, and a
    collective in the handler would hang then. The ranks agree in the all-reduce of the step; if a rank is dead, that
    fails, and nothing is saved by halves.

    A rank that waits in a collective runs no Python handler. So a thread of its own hears the signal too, and ends
    the process when it is still there after the deadline.
    """

    def __init__(self, deadline_seconds: float):
        self.requested = False
        self._deadline_seconds = deadline_seconds

    def start(self, session: Session) -> None:
        self._rank = torch.distributed.get_rank()
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._request)
        watch = threading.Thread(target=self._watch, args=(heard, session), daemon=True, name="stop deadline")
        watch.start()

    def vote(self, session: Session) -> Votes:
        return Votes(stop=int(self.requested))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _watch(self, heard: int, session: Session) -> None:
        while (number := os.read(heard, 1)[0]) not in _SIGNALS:
            pass
        self.requested = True
        time.sleep(self._deadline_seconds)
        # Still here: this thread ends with the process.
        print(
            f"error: rank {self._rank}: not ended {self._deadline_seconds:g} s after {signal.Signals(number).name} "
            f"(checkpoint.preempt_deadline_seconds); {newest_checkpoint(session.run.run_dir)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
