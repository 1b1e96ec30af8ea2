"""One job in one run folder.

Rank 0 holds a lock of the kernel's (POSIX, which NFS knows too) on `run_dir/lock` as long as it lives: when its
process ends, however it ends, the lock is gone, so that there is nothing stale to remove and nothing to guess.

Mounts without lock service keep such locks on their own machine, and some file systems refuse them. For these the
holder also rewrites the file every few seconds. Who gets the kernel's lock, or cannot have one, and finds another
machine's note in the file, watches it for a while: if it changes, its owner lives. No clocks are compared.

The note also holds what the job is doing and for how long: a thread that lives does not prove that training advances. A
job that hangs keeps the lock, as it may continue to write; the refusal of another job says that it hangs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeGuard

from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import break_hard_links

LOCK = "lock"
_BEAT_SECONDS = 5.0
# Longer than a beat and than the attribute cache of an NFS client keeps (3 s for files that change).
_WATCH_SECONDS = 12.0
_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
# struct flock of 64-bit Linux: type, whence, start, length, process.
_FLOCK = "hhqqi4x"


def holder(run_dir: Path, watch_seconds: float = _WATCH_SECONDS) -> dict[str, Any] | None:
    """Return the note of the job that holds a run folder (host, pid, started, ...); None: no job does.

    The lock is not taken, so that a job which starts meanwhile is not refused. Where the kernel knows of no holder and
    the note is another machine's, it is watched for as long as `RunLock` would: the mount may have no lock service.
    """
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        note = _read_note(descriptor)
        if note is None or _is_held(descriptor):
            return note
        if note.get("boot") == _boot():
            return None
        deadline = time.monotonic() + watch_seconds
        while time.monotonic() < deadline:
            time.sleep(watch_seconds / 20)
            _is_held(descriptor)  # makes an NFS client read the file again
            if (now := _read_note(descriptor)) != note:
                return now
        return None
    finally:
        os.close(descriptor)


def quiet_seconds(note: dict[str, Any], now: float) -> float | None:
    """Return for how long a job has been at what it is doing.

    Args:
        note: of a holder.
        now: seconds since 1970; compared with the holder's clock for the time since the note was written.
    """
    quiet, written = note.get("quiet_seconds"), note.get("time")
    if not _is_number(quiet) or not _is_number(written):
        return None
    return quiet + max(now - written, 0.0)


def hangs(note: dict[str, Any], now: float) -> bool:
    """Whether a job has been at one thing for longer than its watchdog allows."""
    quiet, limit = quiet_seconds(note, now), note.get("limit_seconds")
    return quiet is not None and _is_number(limit) and quiet > limit


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value < 1e11


def _is_held(descriptor: int) -> bool:
    """Whether another process holds the kernel's lock; False too where the file system has no locks."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        kind = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
    except OSError:
        return False
    return kind != fcntl.F_UNLCK


def _read_note(descriptor: int) -> dict[str, Any] | None:
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, OSError):
        return None
    return note if isinstance(note, dict) else None


class RunLock:
    """The right to write into a run folder; `release()` or the end of the process gives it up.

    Args:
        run_dir: made if it is not there.

    Raises:
        UserError: another job holds it; the message says which.
    """

    def __init__(self, run_dir: Path, beat_seconds: float = _BEAT_SECONDS, watch_seconds: float = _WATCH_SECONDS):
        self.path = run_dir / LOCK
        run_dir.mkdir(parents=True, exist_ok=True)
        self._leave_copies()
        # One descriptor for the process's life: closing any other one of this file would give the lock up.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._is_kernels = True
        self._beats = 0
        self._started = time.time()
        # What is being done, at which step, since when, and for how long it may be: replaced whole by `advance`.
        self._work: tuple[str, int | None, float, float | None] = ("starting", None, time.monotonic(), None)
        self._stop, self._wake = threading.Event(), threading.Event()
        self._beat_seconds = beat_seconds
        try:
            self._acquire()
            self._refuse_living_owner(watch_seconds)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._write_note()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="run lock")
        self._heart.start()

    def advance(self, doing: str, step: int | None = None, limit_seconds: float | None = None) -> None:
        """The job has come further. A thread records it: at once when the work is another, else with the next beat.

        Args:
            doing: in a word or two, what comes now.
            step: the last one that was taken.
            limit_seconds: how long it may take before the job counts as hung.
        """
        before, self._work = self._work[0], (doing, step, time.monotonic(), limit_seconds)
        if doing != before:
            self._wake.set()

    def release(self) -> None:
        """Leave an empty file: no one has to watch for an owner."""
        self._stop.set()
        self._wake.set()
        self._heart.join()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def require(self) -> None:
        """Refuse to write on when the lock file is no longer the one that is held: another job may hold the new one.

        Raises:
            UserError: it was removed or replaced.
        """
        try:
            held = os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            held = False
        if not held:
            raise UserError(
                f"{self.path}: was removed while this job ran, so another one may write into the folder; nothing more "
                "is saved here. End all jobs of this run, then start one again"
            )

    def _leave_copies(self) -> None:
        """A folder that was copied by hard links (`cp -al`) gets a lock file of its own."""
        try:
            note = json.loads(self.path.read_bytes() or "{}")
            foreign = note.get("folder") != str(self.path.parent.resolve())
        except (OSError, ValueError, AttributeError):
            return
        if foreign:
            break_hard_links(self.path)

    def _acquire(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                raise self._refusal(self._note()) from error
            # A file system without locks: the watch is all there is.
            self._is_kernels = False

    def _refuse_living_owner(self, watch_seconds: float) -> None:
        before = self._note()
        # On this machine the kernel has answered already.
        if before is None or (self._is_kernels and before.get("boot") == _boot()):
            return
        deadline = time.monotonic() + watch_seconds
        while time.monotonic() < deadline:
            time.sleep(watch_seconds / 10)
            # Asking for the lock again makes an NFS client read the file again.
            self._acquire()
            if self._note() not in (before, None):
                raise self._refusal(before)

    def _refusal(self, owner: dict[str, Any] | None) -> UserError:
        who = "another job"
        if owner is not None:
            pid, host = excerpt(owner.get("pid")), excerpt(owner.get("host"))
            who = f"process {pid} on {host}, since {date_of(owner.get('started'))}"
            if hangs(owner, time.time()):
                quiet = timedelta(seconds=round(quiet_seconds(owner, time.time()) or 0))
                who += f", which hangs ({owner.get('doing')} for {quiet})"
        return UserError(
            f"{self.path.parent}: is in use by {who}; wait for it, stop it, or choose another run_dir", every_rank=True
        )

    def _note(self) -> dict[str, Any] | None:
        return _read_note(self._descriptor)

    def _write_note(self) -> None:
        self._beats += 1
        who = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
        doing, step, since, limit = self._work
        work = {"doing": doing, "step": step, "quiet_seconds": round(time.monotonic() - since, 1)}
        work |= {"limit_seconds": limit, "time": time.time()}
        note = {**who, "started": self._started, "beats": self._beats, **work}
        note["folder"] = str(self.path.parent.resolve())
        content = json.dumps(note).encode().ljust(512)
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def _beat(self) -> None:
        while not self._stop.is_set():
            if self._wake.wait(self._beat_seconds):
                self._wake.clear()
                if self._stop.is_set():
                    return
            # A full disk is no reason to give the run up; the kernel's lock still holds.
            with contextlib.suppress(OSError):
                self._write_note()


def date_of(seconds: Any) -> str:
    """A time out of a note, which another program may have written."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e11:
        return "an unknown time"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _boot() -> str:
    """Return what distinguishes this machine's kernel from all others; host names may be the same in containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
