"""Spark hands out tasks: executors read and write files themselves, and no document passes through the JVM.

An executor gets the stage, once, and numbers of tasks; it returns their records. The global steps (bands, edges, ranks)
are stages like all others, not Spark shuffles: their sorted files are the shuffle. So the bytes are those of the other
engines, for any number of partitions. A task that Spark runs twice, or on two hosts at once (speculation), is done by
one of them (`Stage.finish`). And what is finished outlives the application, where shuffle files end with it.

The price is a file system that the driver and all executors see under the same path: NFS, Lustre, or HDFS mounted
as one. Where an executor does not see it, the job ends with a line that says so.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.engines.pool import one_thread
from data_tools.engines.spark_context import mark, one_line, spark_context
from data_tools.engines.stage import Record, Stage
from data_tools.reading.place import Place, default_workers
from megatron_kaiyuan import logs
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.progress import Progress

log = logging.getLogger(__name__)

# One task a partition, so that whoever is free gets the next one. Beyond this, Spark's scheduler takes the time.
_MOST_PARTITIONS = 10_000
_POLL_SECONDS, _IDLE_SECONDS = 1.0, 30.0
# An NFS client may believe for some time that a file which it has once not found is not there. Spark tries four times.
_UNSEEN_SECONDS = 15.0

Calls = Sequence[tuple[Any, ...]]


class SparkEngine:
    """Does each stage as one Spark job.

    Args:
        partitions: of a job; None: `spark.default.parallelism` where that is set, else one a task.
    """

    is_first = True
    place = Place()

    def __init__(self, partitions: int | None = None):
        self._partitions = partitions
        self.workers = default_workers(self.place)

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        records = {number: stage.finished(number) for number in range(len(stage.tasks))}
        left = [number for number in stage.by_size() if records[number] is None]
        done = self.call(stage, "finish", [(number,) for number in left], stage.folder, stage.title)
        records.update({left[call]: record for call, record in done})
        return [record for _, record in sorted(records.items()) if record is not None]

    def call(self, worker: object, method: str, calls: Calls, folder: Path, title: str = "") -> list[tuple[int, Any]]:
        """Call a method of `worker` on the executors with the arguments of each call: its number and what it returned.

        Args:
            worker: pickled once for each process of an executor.
            calls: those that take longest come first.
            folder: where the executors write.
            title: for the progress; "" shows none.

        Raises:
            UserError: a call raised it, an executor does not see the folder, or Spark failed.
        """
        if not calls:
            return []
        context = spark_context()
        piles = _deal(len(calls), self._partitions or _default_partitions(context))
        with _sign(folder) as sign, _Watch(context, title, len(calls), len(piles)):
            shared = context.broadcast(worker)
            try:
                work = [[(number, calls[number]) for number in pile] for pile in piles]
                return list(
                    context.parallelize(work, len(work))
                    .flatMap(_Executor(shared, method, sign.absolute(), _UNSEEN_SECONDS, os.getcwd()))
                    .collect()
                )
            except Exception as error:
                raise one_line(error) from error
            finally:
                with suppress(Exception):
                    shared.unpersist()


def _default_partitions(context: Any) -> int:
    return int(context.getConf().get("spark.default.parallelism", str(_MOST_PARTITIONS)))


def _deal(calls: int, partitions: int) -> list[list[int]]:
    """Numbers of calls, dealt like cards, so that no pile has all the large ones."""
    piles = max(min(calls, partitions), 1)
    return [list(range(first, calls, piles)) for first in range(piles)]


@contextmanager
def _sign(folder: Path) -> Iterator[Path]:
    """A file by which an executor sees that its folder of this name is the driver's."""
    path = folder / f"{uuid.uuid4().hex}.driver"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({describe(error)})") from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@dataclass
class _Executor:
    """What runs in the processes of the executors."""

    worker: Any
    method: str
    sign: Path
    patience: float
    # Inputs and models may be named relative to it.
    working_folder: str

    def __call__(self, pile: list[tuple[int, tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
        try:
            logs.set_up()
            self._look_for_sign()
            os.chdir(self.working_folder)
            with one_thread():
                for number, arguments in pile:
                    yield number, getattr(self.worker.value, self.method)(*arguments)
        except (UserError, OSError) as error:
            raise mark(describe(error)) from error

    def _look_for_sign(self) -> None:
        deadline = time.monotonic() + self.patience
        while not self.sign.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"--engine spark: the executor on {socket.gethostname()} does not see the driver's folder "
                    f"{self.sign.parent}; input and output must lie on a file system that all hosts have under this "
                    "path (NFS, Lustre, HDFS mounted as one)"
                )
            time.sleep(0.2)


class _Watch:
    """Shows how many tasks of a job are finished, and says when no executor takes any. A context manager."""

    def __init__(self, context: Any, title: str, calls: int, partitions: int):
        self._context, self._share = context, calls / partitions
        self._progress = Progress(title, calls)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="spark progress")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._progress.__exit__(*error)

    def _run(self) -> None:
        tracker, began = self._context.statusTracker(), time.monotonic()
        while not self._end.wait(_POLL_SECONDS):
            with suppress(Exception):  # the context may be gone before this thread is
                stages = [tracker.getStageInfo(number) for number in tracker.getActiveStageIds()]
                done = sum(stage.numCompletedTasks for stage in stages if stage)
                busy = sum(stage.numActiveTasks for stage in stages if stage)
                self._progress.reach(int(done * self._share))
                if not busy and not done and time.monotonic() - began > _IDLE_SECONDS:
                    began = time.monotonic()
                    page = self._context.uiWebUrl or "the cluster's page"
                    log.info(f"spark: no executor has taken a task for {_IDLE_SECONDS:.0f} s; see {page}")
