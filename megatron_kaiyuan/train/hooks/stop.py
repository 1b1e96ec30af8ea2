"""Pre-emption: a signal ends the run after the current step, with a checkpoint, or after a deadline without one."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

import torch

from megatron_kaiyuan import exit_codes
from megatron_kaiyuan.logs import log_at_once
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.saving import newest_checkpoint
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.votes import Votes


class StopOnSignal(Hook):
    """SIGTERM, SIGHUP, SIGUSR1 and SIGINT: finish the step, save it, leave a marker and end.

    SIGHUP comes when the terminal goes away; where it is ignored (nohup), it stays so.

    The handler only sets a flag: the launcher also sends SIGTERM to healthy ranks when another one is dead, and a
    collective in the handler would hang then. The ranks agree in the all-reduce of the step; if a rank is dead, that
    fails, and nothing is saved by halves.

    A rank that waits in a collective runs no Python handler. So a thread of its own reads the signal too, and ends
    the process when it is still there after the deadline.
    """

    def __init__(self, deadline_seconds: float):
        # The first signal of this rank; 0: none.
        self._number = 0
        self._deadline_seconds = deadline_seconds

    def start(self, session: Session) -> None:
        self._rank = torch.distributed.get_rank()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in exit_codes.STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._request)
        watch = threading.Thread(target=self._watch, args=(reading, session), daemon=True, name="stop deadline")
        watch.start()

    def vote(self, session: Session) -> Votes:
        return Votes(stop=int(self._number > 0))

    def asked(self, device: torch.device) -> bool:
        """Return whether any rank was asked to stop, for work between steps that can be left out. Collective."""
        number = torch.tensor(self._number, device=device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number) > 0

    def finish(self, session: Session) -> None:
        """Agree on the signal that stopped the run: ranks may have got different ones, or none."""
        if not session.finished:
            number = torch.tensor(self._number, device=session.state.platform.device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            session.stopped_by = int(number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number

    def _watch(self, reading: int, session: Session) -> None:
        while (number := os.read(reading, 1)[0]) not in exit_codes.STOP_SIGNALS:
            pass
        self._request(number, None)
        time.sleep(self._deadline_seconds)
        # Still here: this thread ends with the process.
        log_at_once(
            logging.ERROR,
            f"rank {self._rank}: not ended {self._deadline_seconds:g} s after {signal.Signals(number).name} "
            f"(checkpoint.preempt_deadline_seconds); {newest_checkpoint(session.run.run_dir)}",
        )
        os._exit(exit_codes.FAILED)
