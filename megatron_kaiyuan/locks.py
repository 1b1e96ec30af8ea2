"""Locks between processes, given back by the system when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import xxhash

from megatron_kaiyuan.errors import UserError

log = logging.getLogger(__name__)

# The workers of a killed run end within moments; whoever holds a lock for longer is alive.
_SECONDS = 30.0
_SILENT_SECONDS = 1.0


@contextmanager
def lock(path: Path, *, shared: bool = False, seconds: float | None = _SECONDS, keep: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`, alone or `shared` with others that also share it.

    Args:
        seconds: how long to wait for another holder; None: for as long as it lives.
        keep: leave the file; else it is removed when the lock is given back.

    Yields:
        Whether the lock is held against every process: False on a file system without locks. There it still excludes
        the processes of this machine, unless it is shared.

    Raises:
        UserError: another process holds it for `seconds`.
        BlockingIOError: the same, where `seconds` is 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = math.inf if seconds is None else time.monotonic() + seconds if seconds else -math.inf
    while True:
        # Opened for appending: should a file of the user's have this name, it keeps its content.
        with open(path, "a") as file, ExitStack() as machine:
            held = _wait(file, path, shared, deadline, machine)
            # The previous holder may have removed the file, and a third process made a new one.
            if _is_at(file, path):
                log.debug(f"holds the lock {path}")
                try:
                    yield held
                finally:
                    if not keep and not os.fstat(file.fileno()).st_size:
                        path.unlink(missing_ok=True)
                return
        path.parent.mkdir(parents=True, exist_ok=True)


def _wait(file: IO[str], path: Path, shared: bool, deadline: float, machine: ExitStack) -> bool:
    silent_until = time.monotonic() + _SILENT_SECONDS
    while True:
        try:
            return _acquire(file, path, shared, machine)
        except BlockingIOError:
            if deadline == -math.inf:
                raise
            now = time.monotonic()
            if now > deadline:
                raise UserError(
                    f"{path}: another process is at work there; wait for it, or stop it, and start again"
                ) from None
            if now > silent_until:
                limit = "" if deadline == math.inf else f"up to {deadline - now:.0f} s "
                log.info(f"waiting {limit}for the process that holds {path}")
                silent_until = deadline
            time.sleep(0.05)


def _acquire(file: IO[str], path: Path, shared: bool, machine: ExitStack) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise
    except OSError:
        if not shared:
            _acquire_on_this_machine(path, machine)
        return False


def _acquire_on_this_machine(path: Path, machine: ExitStack) -> None:
    """Take the name of a socket that lies in no file system (Linux only); the kernel frees it with its last process.

    Raises:
        BlockingIOError: another process has it.
    """
    folder = path.parent.stat()
    name = xxhash.xxh3_128_hexdigest(f"{folder.st_dev}/{folder.st_ino}/{path.name}".encode())
    holder = machine.enter_context(socket.socket(socket.AF_UNIX))
    try:
        holder.bind(f"\0kaiyuan/{name}")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
