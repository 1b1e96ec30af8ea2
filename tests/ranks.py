"""Ranks as a launcher starts them, in a tenth of the time: forks of a process that has imported everything once.

Importing torch and megatron-core takes longer than a whole small run. A rank is a fork that goes on from there: its own
process, process groups, files and signals. The process they are forked from calls nothing of torch and has one thread,
so that a fork of it is as good as a fresh process.

    python tests/ranks.py training    reads jobs from standard input, one a line, and answers each with its exit codes
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# The environment outside of any test: a server outlives the test that is the first to ask for it.
_OUTSIDE = {**os.environ}
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


def run(
    count: int,
    program: Sequence[object],
    largest_file: int | None = None,
    *,
    imported: str = "training",
    typed: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a Python program (`-m module`, `-c code` or a file, and its arguments) on ranks, to its end.

    The exit code is the first one that is not 0, by rank.

    Args:
        largest_file: see `Ranks`.
        imported: what the ranks find imported, a name in `_IMPORTS`.
        typed: their standard input.
    """
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        (Path(folder) / "typed").write_text(typed)
        codes = _ask(imported, count, program, Path(folder), largest_file, wait=True)
        output, errors = ((Path(folder) / name).read_text() for name in ("output", "errors"))
        if isinstance(codes, str):
            raise TimeoutError(f"{codes}: {errors[-3000:]}")
        return subprocess.CompletedProcess(list(map(str, program)), _first_failure(codes), output, errors)


class Started:
    """Ranks at work beside the test; as their launcher, one that fails ends the others.

    Attributes:
        ranks: their process ids.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.ranks: list[int] = _wait_for_json(folder / "ranks", 60)

    def send_signal(self, number: signal.Signals) -> None:
        """To every rank that has not ended, as a launcher passes on its own."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    def poll(self) -> int | None:
        """The exit code of all, or None while one is at work."""
        codes = self._folder / "codes"
        return _first_failure(json.loads(codes.read_text())) if codes.exists() else None

    def wait(self, seconds: float) -> int:
        return _first_failure(self.exit_codes(seconds))

    def exit_codes(self, seconds: float) -> list[int]:
        """By rank, at the end; negative ones are signals."""
        return _wait_for_json(self._folder / "codes", seconds)

    def errors(self) -> str:
        return (self._folder / "errors").read_text()


@contextlib.contextmanager
def started(count: int, program: Sequence[object], *, imported: str = "training") -> Iterator[Started]:
    """`run`, for the body of a `with`; ranks that are left at its end are killed."""
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        _ask(imported, count, program, Path(folder), None, wait=False)
        job = Started(Path(folder))
        try:
            yield job
        finally:
            if job.poll() is None:
                job.send_signal(signal.SIGKILL)
                job.wait(60)


def _first_failure(codes: Sequence[int]) -> int:
    return next((code for code in codes if code), 0)


def _wait_for_json(path: Path, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path.name} after {seconds:g} s: {path.with_name('errors').read_text()[-3000:]}")
        time.sleep(0.005)
    return json.loads(path.read_text())


def _ask(
    imported: str, count: int, program: Sequence[object], folder: Path, largest_file: int | None, wait: bool
) -> Any:
    """Have a server start a job; its exit codes, what went wrong, or None if it is not to be waited for."""
    server = _server(imported)
    assert server.stdin is not None and server.stdout is not None
    job = {"count": count, "program": list(map(str, program)), "largest_file": largest_file, "wait": wait}
    job |= {"environ": {**os.environ}, "folder": os.getcwd(), "answers": str(folder)}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _server(imported: str) -> subprocess.Popen[str]:
    """One for each process that tests; it ends with its standard input."""
    command = [sys.executable, __file__, imported]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_OUTSIDE)


def _import_training() -> None:
    from megatron_kaiyuan import platform

    platform.activate("cpu")
    # What takes the time; a platform has to be active before.
    from megatron_kaiyuan.train import start  # noqa: F401


def _import_torch() -> None:
    """Without a platform, which is chosen once for a process."""
    import torch  # noqa: F401


def _import_data_tools() -> None:
    import typer  # noqa: F401

    from data_tools.corpora import inspect, merge, verify  # noqa: F401
    from data_tools.curriculum import build, materialize, report  # noqa: F401
    from data_tools.preprocessing import preprocess  # noqa: F401
    from data_tools.tokenizers import train_tokenizer  # noqa: F401


def _import_evaluation() -> None:
    import lm_eval  # noqa: F401
    import transformers  # noqa: F401

    from megatron_kaiyuan.evaluate import run  # noqa: F401


_IMPORTS: dict[str, Callable[[], None]] = {
    "training": _import_training,
    "torch": _import_torch,
    "data": _import_data_tools,
    "evaluation": _import_evaluation,
}


def _serve(imported: str) -> None:
    # As for `python -m` in the project's folder; the folder of this file has a `data_tools` too.
    sys.path[0] = str(Path(__file__).parents[1])
    _IMPORTS[imported]()
    for line in sys.stdin:
        job = json.loads(line)
        answer: Any = None
        if job["wait"]:
            try:
                answer = _ranks(job).wait()
            except TimeoutError as error:
                answer = str(error)
        else:
            fork(functools.partial(_supervise, job), _logs(job))
        print(json.dumps(answer), flush=True)


def _supervise(job: dict) -> None:
    ranks = _ranks(job)
    _write_json(Path(job["answers"]) / "ranks", ranks.processes)
    _write_json(Path(job["answers"]) / "codes", ranks.wait())


def _write_json(path: Path, content: object) -> None:
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content))
    half.rename(path)


def _logs(job: dict) -> tuple[Path, Path]:
    return Path(job["answers"]) / "output", Path(job["answers"]) / "errors"


def _ranks(job: dict) -> Ranks:
    return Ranks(job["count"], functools.partial(_run, job), _logs(job), job["largest_file"])


def _run(job: dict) -> None:
    """As `python` would run the program."""
    place = {name: os.environ[name] for name in os.environ if name.startswith(("RANK", "LOCAL_", "WORLD_", "MASTER_"))}
    os.environ.clear()
    os.environ.update({**job["environ"], **place})
    os.chdir(job["folder"])
    typed = Path(job["answers"]) / "typed"
    os.dup2(os.open(typed if typed.exists() else os.devnull, os.O_RDONLY), 0)
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    first, *rest = job["program"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def free_port() -> int:
    """That nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    _serve(sys.argv[1])
