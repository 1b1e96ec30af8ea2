"""How far a run is, over all its processes: each keeps a small file up to date, and one adds them up.

The files lie in the shard folder, so that ranks on several machines need nothing else to share.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from megatron_kaiyuan.logs import shows_bars

log = logging.getLogger(__name__)

_COUNTS = struct.Struct("<QQQ")
_METER_SECONDS, _BAR_SECONDS, _LINE_SECONDS = 0.5, 0.5, 60.0
METERS = "progress"


class Counts(NamedTuple):
    """Work done: bytes of the inputs as stored, documents and tokens."""

    read: int = 0
    documents: int = 0
    tokens: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class Meter:
    """The work of one process, kept in a file that others read."""

    def __init__(self, path: Path):
        self._path, self._written = path, 0.0
        self._finished, self._current = Counts(), Counts()

    def advance(self, read: int, documents: int, tokens: int) -> None:
        """In the current task: bytes and tokens so far, and documents of the last batch."""
        self._current = Counts(read, self._current.documents + documents, tokens)
        if time.monotonic() - self._written > _METER_SECONDS:
            self._write()

    def finish(self, size: int) -> None:
        """The current task of `size` bytes is done."""
        self._finished = self._finished.plus(self._current._replace(read=size))
        self._current = Counts()
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        # A reader may see a mixture of two states, which does not show in a bar; a full disk is reported by the shards.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(_COUNTS.pack(*self._finished.plus(self._current)))
        except OSError:
            pass


def meter_path(folder: Path, rank: int, process: int) -> Path:
    """Where a process keeps its counts: apart from the shards, of which there may be very many to look through."""
    return folder / METERS / f"{rank}-{os.uname().nodename}-{process}"


def forget(folder: Path, rank: int) -> None:
    """Remove what an earlier run of this rank left."""
    for path in (folder / METERS).glob(f"{rank}-*"):
        path.unlink(missing_ok=True)


class Bar:
    """One bar for the whole run on a terminal, one line a minute elsewhere. A context manager.

    Args:
        folder: the shard folder, in which the meters are.
        total: bytes of all inputs as stored; `done` of them were finished before this run.
        world: ranks; meters of others are of an earlier run.
    """

    def __init__(self, folder: Path, total: int, done: int, world: int):
        self._folder, self._done, self._world = folder, done, world
        self._terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            desc="preprocess",
            disable=not shows_bars(),
        )
        self._started, self._end = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._total = total

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._bar.close()

    def _run(self) -> None:
        while not self._end.wait(_BAR_SECONDS if self._terminal else _LINE_SECONDS):
            self._show()
        if self._terminal:
            self._show()

    def _show(self) -> None:
        counts = self._sum()
        seconds = time.monotonic() - self._started
        figures = f"{counts.documents:,} documents, {counts.tokens / seconds / 1e6:.2f} M tokens/s"
        if self._terminal:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(self._done + counts.read - self._bar.n)
            return
        done = self._done + counts.read
        left = (self._total - done) * seconds / counts.read / 60 if counts.read else float("inf")
        size = f"{done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        log.info(f"preprocess: {size}, {figures}, {left:,.0f} minutes left")

    def _sum(self) -> Counts:
        counts = Counts()
        for path in (self._folder / METERS).glob("*-*"):
            rank = path.name.partition("-")[0]
            try:
                if rank.isdigit() and int(rank) < self._world:
                    counts = counts.plus(Counts(*_COUNTS.unpack(path.read_bytes())))
            except (OSError, struct.error):
                continue  # just being written
        return counts
