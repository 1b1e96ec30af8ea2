"""Locks between processes, given back by the system when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_kaiyuan.errors import UserError

# The workers of a killed run end within moments; whoever holds a lock for longer is alive.
_SECONDS = 30.0


@contextmanager
def lock(path: Path, *, shared: bool = False, seconds: float = _SECONDS) -> Iterator[None]:
    """Hold the lock file `path`, alone or `shared` with others that also share it.

    On a file system without locks nothing is held.

    Raises:
        UserError: another process holds it for `seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    while True:
        with open(path, "w") as file:
            _wait(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline)
            # The holder before may have removed the file, and a third process made a new one.
            if _is_at(file, path):
                yield
                return
        path.parent.mkdir(parents=True, exist_ok=True)


def _wait(file: IO[str], path: Path, kind: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: another run is at work there; wait for it, or end it") from None
            time.sleep(0.05)
        except OSError:
            return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
