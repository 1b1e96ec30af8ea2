"""The launch scripts as a user calls them, and every process that they leave running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
# For a busy machine. A rank that waits in a rendezvous or a collective would stay for ten minutes.
GONE_SECONDS = 60
_MARK = "KAIYUAN_TEST_JOB"
_RANK_NAMES = {"LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MS_ROLE"}


@dataclass
class Job:
    script: subprocess.Popen[str]
    mark: str

    def processes(self) -> dict[int, dict[str, str]]:
        """Environments of all that the script has started and that runs, orphans too, by process id."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get(_MARK) == self.mark:
                    found[process.pid] = environment
        return found

    def ranks(self) -> list[int]:
        return [process for process, environment in self.processes().items() if _RANK_NAMES & environment.keys()]

    def launcher(self) -> int:
        """The process that has started the ranks: torchrun's agent, mpirun, msrun."""
        return psutil.Process(self.ranks()[0]).ppid()

    def listens_at(self, port: int) -> bool:
        """Whether its launcher does."""
        connections = psutil.Process(self.launcher()).net_connections()
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 280
        while not happened():
            assert self.script.poll() is None, self.script.communicate()
            assert time.monotonic() < deadline
            # What is waited for may look at every process of the machine.
            time.sleep(0.05)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of the script."""
        output, errors = self.script.communicate(timeout=280)
        return self.script.returncode, output, errors

    def require_gone(self) -> None:
        """Every process ends soon, the script too."""
        deadline = time.monotonic() + GONE_SECONDS
        while self.processes() or self.script.poll() is None:
            assert time.monotonic() < deadline, self.processes().keys()
            time.sleep(0.1)


def launched(
    script: str, *arguments: object, environ: Mapping[str, str] | None = None, inside: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Job]:
    """launch/SCRIPT at work for the body of a `with`, in a folder that has nothing to do with the project.

    Args:
        environ: added to this process's.
        inside: a command that runs the script.
    """
    return started([*inside, "bash", ROOT / "launch" / script, *arguments], environ, Path("/"))


@contextlib.contextmanager
def started(command: Sequence[object], environ: Mapping[str, str] | None, folder: Path) -> Iterator[Job]:
    """Any command; nothing of it runs behind the `with`."""
    interpreter = Path(sys.executable).parent
    mark = uuid.uuid4().hex
    # Tests in this process may have been a rank themselves.
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    chosen = {
        "PATH": f"{interpreter}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(interpreter.parent),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        _MARK: mark,
        **(environ or {}),
    }
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env={**inherited, **chosen},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        job = Job(process, mark)
        try:
            yield job
        finally:
            for left in [process.pid, *job.processes()]:
                with contextlib.suppress(OSError):
                    os.kill(left, signal.SIGKILL)


def succeed(script: str, *arguments: object, environ: Mapping[str, str] | None = None) -> str:
    """Run a script that has to succeed; its standard output."""
    with launched(script, *arguments, environ=environ) as job:
        code, output, errors = job.finish()
    assert code == 0, errors[-3000:]
    return output
