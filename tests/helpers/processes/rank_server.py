"""Programs as a launcher starts them, in a tenth of the time: forks of a process that has imported what they need.

Importing torch and megatron-core takes longer than a whole small run. A rank is a fork that continues from there: its
own process, process groups, files and signals. The process they are forked from calls nothing of torch and has one
thread, so that a fork of it is as good as a fresh process.

    python -m tests.helpers.processes.rank_server training

reads jobs from standard input, one a line, and answers each with its exit codes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.processes.ranks import Ranks, fork

_ROOT = Path(__file__).parents[3]
# The environment outside of any test: a server outlives the test that is the first to ask for it.
_OUTSIDE = {**os.environ}


def run(
    count: int,
    program: Sequence[object],
    largest_file: int | None = None,
    *,
    imported: str = "training",
    typed: str = "",
    environ: Mapping[str, str] | None = None,
    seconds: float = 240.0,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program (`-m module`, `-c code` or a file, and its arguments) on ranks, to its end.

    The exit code is the first one that is not 0, by rank.

    Args:
        largest_file: see `Ranks`.
        imported: what the ranks find imported, a name in `_IMPORTS`.
        typed: their standard input.
        environ: their environment, by default that of this process.

    Raises:
        TimeoutError: they did not end in `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="ranks") as folder:
        (Path(folder) / "typed").write_text(typed)
        limits: dict[str, Any] = {"largest_file": largest_file, "seconds": seconds}
        codes = _ask(imported, count, program, Path(folder), wait=True, environ=environ, **limits)
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
        _ask(imported, count, program, Path(folder), wait=False)
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
    imported: str,
    count: int,
    program: Sequence[object],
    folder: Path,
    *,
    wait: bool,
    environ: Mapping[str, str] | None = None,
    largest_file: int | None = None,
    seconds: float = 240.0,
) -> Any:
    """Have a server start a job; its exit codes, what went wrong, or None if it is not to be waited for."""
    server = _server(imported)
    assert server.stdin is not None and server.stdout is not None
    job = {"count": count, "program": list(map(str, program)), "largest_file": largest_file, "wait": wait}
    job |= {"environ": dict(os.environ if environ is None else environ), "seconds": seconds}
    job |= {"folder": os.getcwd(), "answers": str(folder)}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _server(imported: str) -> subprocess.Popen[str]:
    """One for each process that tests; it ends with its standard input."""
    command = [sys.executable, "-m", "tests.helpers.processes.rank_server", imported]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=_ROOT, env=_OUTSIDE, **pipes)


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


def _import_ascend() -> None:
    """torch_npu over the stubs, without a device; transfer_to_npu and what follows it are the program's own."""
    from tests.helpers.ascend import preload  # noqa: F401


_IMPORTS: dict[str, Callable[[], None]] = {
    "training": _import_training,
    "torch": _import_torch,
    "ascend": _import_ascend,
    "data": _import_data_tools,
    "evaluation": _import_evaluation,
}


def _serve(imported: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        _IMPORTS[imported]()
    for line in sys.stdin:
        job = json.loads(line)
        answer: Any = None
        if job["wait"]:
            try:
                answer = _ranks(job).wait(job["seconds"])
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
    run_as_python(job["program"])


def run_as_python(program: Sequence[str]) -> None:
    """Run `-m module`, `-c code` or a file with its arguments in this process, as `python` would."""
    first, *rest = program
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
