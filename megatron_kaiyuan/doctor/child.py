"""Child processes of an examination: started in a session of their own, killed with everything that they started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil


def start(command: list[str], printed: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a command whose output and errors go to the file `printed`.

    Args:
        environment: variables on top of this process's.
    """
    with open(printed, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a child and all its descendants: ranks have process groups of their own."""
    if process.poll() is None:
        root = psutil.Process(process.pid)
        for one in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def how_it_ended(code: int) -> str:
    """An exit code of `subprocess` in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
