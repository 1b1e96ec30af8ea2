"""A training job as a launcher runs it, started in a tenth of the time: its ranks are forks of this process.

Importing torch and megatron-core takes longer than a whole small run. So they are imported here once, and a rank is a
fork that goes the way of `kaiyuan train` from there: its own process, process groups, files and signals. This process
calls nothing of torch and has one thread, so that a fork of it is as good as a fresh process.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from megatron_kaiyuan import platform

platform.activate("cpu")

from megatron_kaiyuan.train import start  # noqa: E402, F401 - what takes the time; a platform has to be active before
from megatron_kaiyuan.train.rank import run_on_this_rank  # noqa: E402

# As torchrun does when a rank has failed: SIGTERM to the others, and SIGKILL when they have not ended by then.
_SECONDS_TO_END = 30.0


class Job:
    """Ranks of one training command.

    Args:
        log: takes what the ranks print; appended to.
        largest_file: bytes, a limit of the system on each file that a rank writes.
    """

    def __init__(self, ranks: int, recipe: Path, overrides: Sequence[str], log: Path, largest_file: int | None = None):
        self.exit_codes: dict[int, int] = {}
        port = _free_port()
        self.processes = [
            fork(lambda rank=rank: _train(rank, ranks, port, recipe, overrides, largest_file), log)  # type: ignore[misc]
            for rank in range(ranks)
        ]

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


def fork(action: Callable[[], object], log: Path) -> int:
    """Run an action in a child that prints to `log`; its process id. The child ends with the action."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(
    rank: int, ranks: int, port: int, recipe: Path, overrides: Sequence[str], largest_file: int | None
) -> NoReturn:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    if largest_file is not None:
        sys.dont_write_bytecode = True  # the limit would cut it off
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        # Else the signal, not the failed write, would end the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run_on_this_rank(recipe, list(overrides))
    sys.stdout.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
