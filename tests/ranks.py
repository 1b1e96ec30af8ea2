"""Ranks as a launcher starts them, in a tenth of the time: forks of a process that has imported everything once.

Importing torch and megatron-core takes longer than a whole small run. A rank is a fork that goes on from there: its own
process, process groups, files and signals. The process they are forked from calls nothing of torch and has one thread,
so that a fork of it is as good as a fresh process.

    python tests/ranks.py    reads jobs from standard input, one a line, and answers each with its exit codes
"""

from __future__ import annotations

import functools
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
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


def run(count: int, program: Sequence[object], largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python program (`-m module` or a file, and its arguments) on ranks, to its end.

    The exit code is the first one that is not 0, by rank.
    """
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        words = list(map(str, program))
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        job = {"count": count, "program": words, "largest_file": largest_file, "environ": {**os.environ}}
        server.stdin.write(json.dumps({**job, "folder": os.getcwd(), "logs": [str(output), str(errors)]}) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        if isinstance(codes, str):
            raise TimeoutError(f"{codes}: {errors.read_text()[-3000:]}")
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """One for each process that tests; it ends with its standard input."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    from megatron_kaiyuan import platform

    platform.activate("cpu")
    # What takes the time; a platform has to be active before.
    from megatron_kaiyuan.train import start  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        logs = (Path(job["logs"][0]), Path(job["logs"][1]))
        answer: list[int] | str
        try:
            answer = Ranks(job["count"], functools.partial(_run, job), logs, job["largest_file"]).wait()
        except TimeoutError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)


def _run(job: dict) -> None:
    """As `python` would run the program."""
    place = {name: os.environ[name] for name in os.environ if name.startswith(("RANK", "LOCAL_", "WORLD_", "MASTER_"))}
    os.environ.clear()
    os.environ.update({**job["environ"], **place})
    os.chdir(job["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    first, *rest = job["program"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def free_port() -> int:
    """That nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    _serve()
