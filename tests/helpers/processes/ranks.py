"""Ranks as a launcher starts them: forks of this process, which `rank_server.py` is for tests."""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# As torchrun does when a rank has failed: SIGTERM to the others, and SIGKILL when they have not ended by then.
_SECONDS_TO_END = 30.0


class Ranks:
    """The ranks of one job.

    Args:
        action: what a rank does; its environment is that of a rank by then.
        logs: take what the ranks print, appended: standard output, standard error.
        largest_file: bytes, a limit of the system on each file that a rank writes.
    """

    def __init__(
        self, count: int, action: Callable[[], object], logs: tuple[Path, Path], largest_file: int | None = None
    ):
        self.exit_codes: dict[int, int] = {}
        port = free_port()

        def be(rank: int) -> None:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            if largest_file is not None:
                sys.dont_write_bytecode = True  # the limit would cut it off
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
                # Else the signal, not the failed write, would end the process.
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            action()

        self.processes = [fork(functools.partial(be, rank), logs) for rank in range(count)]

    def kill(self, ranks: Sequence[int], number: signal.Signals) -> None:
        """Send a signal to ranks that have not ended."""
        for rank in ranks:
            if rank not in self.exit_codes:
                os.kill(self.processes[rank], number)

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120.0) -> bool:
        """Whether it happened before a rank ended."""
        deadline = time.monotonic() + seconds
        while not happened():
            self._collect()
            if self.exit_codes or time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
        return True

    def wait(self, seconds: float = 240.0) -> list[int]:
        """Wait to the end as a launcher does; exit codes by rank, negative ones are signals.

        Raises:
            TimeoutError: nobody ended in time; all are killed.
        """
        deadline = time.monotonic() + seconds
        stopping = False
        while len(self.exit_codes) < len(self.processes):
            self._collect()
            if any(self.exit_codes.values()) and not stopping:
                stopping, deadline = True, time.monotonic() + _SECONDS_TO_END
                self.kill(range(len(self.processes)), signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill(range(len(self.processes)), signal.SIGKILL)
                if not stopping:
                    raise TimeoutError(f"ranks {self.processes} did not end in {seconds:g} s")
            time.sleep(0.002)
        return [self.exit_codes[rank] for rank in range(len(self.processes))]

    def _collect(self) -> None:
        for rank, process in enumerate(self.processes):
            if rank not in self.exit_codes:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.exit_codes[rank] = os.waitstatus_to_exitcode(status)


def fork(action: Callable[[], object], logs: tuple[Path, Path]) -> int:
    """Run an action in a child that prints to `logs`; its process id. The child ends with the action."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """That nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
