"""Locks between processes, given back by the system when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_kaiyuan.errors import UserError

# The workers of a killed run end within moments; whoever holds a lock for longer is alive.
_SECONDS = 30.0
_SILENT_SECONDS = 1.0


@contextmanager
def lock(path: Path, *, shared: bool = False, seconds: float = _SECONDS, keep: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`, alone or `shared` with others that also share it.

    Args:
        seconds: how long to wait for another holder.
        keep: leave the file; else it is removed when the lock is given back.

    Yields:
        Whether the lock is held: False on a file system without locks.

    Raises:
        UserError: another process holds it for `seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    while True:
        with open(path, "w") as file:
            held = _wait(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline)
            # The previous holder may have removed the file, and a third process made a new one.
            if _is_at(file, path):
                try:
                    yield held
                finally:
                    if not keep:
                        path.unlink(missing_ok=True)
                return
        path.parent.mkdir(parents=True, exist_ok=True)


def _wait(file: IO[str], path: Path, kind: int, deadline: float) -> bool:
    silent_until = time.monotonic() + _SILENT_SECONDS
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            now = time.monotonic()
            if now > deadline:
                raise UserError(
                    f"{path}: another process is at work there; wait for it, or stop it, and start again"
                ) from None
            if now > silent_until:
                print(f"waiting up to {deadline - now:.0f} s for the process that holds {path}", file=sys.stderr)
                silent_until = deadline
            time.sleep(0.05)
        except OSError:
            return False


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
