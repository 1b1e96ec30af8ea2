"""A pool of processes that write shards. They end at once when the process that started them ends, however it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from data_tools.progress import Meter, meter_path
from data_tools.shards import KEPT, Record, Shards, ShardWriter
from data_tools.tasks import Settings, Task
from data_tools.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    settings: Settings
    prefixes: tuple[Path, ...]
    rank: int
    max_bad_rows: int

    def writer(self, tokenizer: TextTokenizer | None = None) -> ShardWriter:
        """For the process that asks."""
        shards = Shards(self.prefixes)
        meter = Meter(meter_path(shards.folders[0], self.rank, os.getpid()))
        return ShardWriter(self.settings, shards, self.max_bad_rows, meter, tokenizer)


class Pool:
    """Processes that start at once, so that they have loaded their libraries when the first task comes.

    A context manager: at its end, in whatever way, no process is left.
    """

    def __init__(self, job: Job, workers: int):
        self._job = job
        # Spawned, not forked: the tokenizer libraries and the progress bar run threads.
        context = multiprocessing.get_context("spawn")
        # Nothing is ever sent. The system closes our end when we die, and that tells the workers.
        receiver, self._alive = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(receiver,))
        for _ in range(workers):
            self._executor.submit(os.getpid)
        receiver.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._alive.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._alive.close()

    def write(self, tasks: Sequence[Task], engine: str) -> Iterator[tuple[Task, Record]]:
        """Do tasks; each comes with its record when it is done, in any order.

        Raises:
            UserError: the first failing task's error, or a worker died.
        """
        job = replace(self._job, settings=replace(self._job.settings, engine=engine))
        try:
            futures = {self._executor.submit(_write, job, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            reason = "a worker process died, most likely for lack of memory"
            raise UserError(f"{reason}; use fewer --workers, {KEPT}") from error


def _start(alive: Connection) -> None:
    # The pool is the parallelism; the library's own threads would only compete with it.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    # Ctrl-C goes to the whole process group; the first process says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    alive.poll(None)
    os._exit(1)


_writers: dict[Job, ShardWriter] = {}


def _write(job: Job, task: Task) -> Record:
    if job not in _writers:
        _writers[job] = job.writer()
    return _writers[job].write(task)
