"""A pool of processes that end at once when the process that started them ends, however it does."""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_tools.reading.tasks import KEPT
from megatron_kaiyuan import logs
from megatron_kaiyuan.environment import environment
from megatron_kaiyuan.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pool:
    """Processes that call the methods of one object, and share its memory where they can be forked.

    A context manager: at its end, in whatever way, no process is left.

    Args:
        worker: inherited by forked processes and pickled for others. `prepare_fork`, if it has one, is called before a
            fork: what it loads is shared.

    Raises:
        UserError: from every method, a process died.
    """

    def __init__(self, worker: object, workers: int):
        # A forked process shares what is loaded. But where other threads run here, one may hold a lock for ever there.
        forked = sys.platform == "linux" and threading.active_count() == 1
        context: Any = multiprocessing.get_context("fork" if forked else "spawn")
        if forked:
            getattr(worker, "prepare_fork", lambda: None)()
            pa.array([])  # at its first array Arrow imports pandas, where that is installed
        # Nothing is ever sent. The system closes our end when we die, and the workers see that.
        alive, self._alive = context.Pipe(duplex=False)
        self._workers: dict[Connection, BaseProcess] = {}
        log.debug(f"starts {workers} processes, {'forked' if forked else 'spawned'}")
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                not_theirs = (*self._workers, ours, self._alive) if forked else ()
                process = context.Process(target=_work, args=(worker, theirs, alive, not_theirs), daemon=True)
                self._workers[ours] = process
                with theirs, one_thread():
                    _start(process)
        except BaseException:
            self._end()
            raise
        finally:
            alive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self._workers)

    def run(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Generator[tuple[int, Any], None, None]:
        """Call a method of the workers with the arguments of each call: its number and what it returned.

        After an error the pool is of no more use, for other calls may still be under way.
        """
        left = iter(enumerate(calls))
        busy: dict[Connection, int] = {}

        def give(ours: Connection) -> None:
            for number, arguments in left:
                busy[ours] = number
                self._send(ours, (method, arguments))
                break

        for ours in self._workers:
            give(ours)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                number, result = busy.pop(ready), self._receive(ready)
                give(ready)
                yield number, result

    def _send(self, ours: Connection, call: tuple[str, tuple[Any, ...]]) -> None:
        try:
            ours.send(call)
        except OSError as error:
            raise _died() from error

    def _receive(self, ours: Connection) -> Any:
        try:
            result = ours.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if isinstance(result, _Failure):
            raise result.error from RuntimeError(result.trace)
        return result

    def _end(self) -> None:
        self._alive.close()
        for ours, process in self._workers.items():
            ours.close()
            if process.pid is not None:
                process.join()


def one_thread() -> AbstractContextManager[None]:
    """For what is started in the block: the processes are the parallelism, and threads would only compete with it."""
    return environment({"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"})


def _start(process: BaseProcess) -> None:
    try:
        with warnings.catch_warnings():
            # That native threads run here: those are of libraries which prepare for a fork, or wait for work for ever.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError as error:  # killed while it is given what it needs to know, or no memory for it
        raise _died() from error


def _died() -> UserError:
    return UserError(f"a worker process died, most likely for lack of memory; use fewer --workers, {KEPT}")


@dataclass
class _Failure:
    """What a call raised."""

    error: Exception
    trace: str


def _work(worker: object, calls: Connection, alive: Connection, not_mine: Sequence[Connection]) -> None:
    for other in not_mine:
        other.close()
    # Ctrl-C goes to the whole process group; the first process says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    logs.set_up()
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    # A vocabulary is a million objects that stay; the collector need not look at them again and again.
    gc.freeze()
    # When the first process has gone, so may we, also in the middle of a message.
    with suppress(EOFError, OSError):
        while True:
            method, arguments = calls.recv()
            calls.send(_answer(worker, method, arguments))


def _answer(worker: object, method: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(worker, method)(*arguments)
    except Exception as error:
        return _Failure(error, traceback.format_exc())


def _die_with_parent() -> None:
    """Linux kills this process with the thread that started it, even while a library holds the interpreter's lock.

    Elsewhere, and where that thread had gone before, `_end_with` ends it: between two steps of the interpreter.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_with(alive: Connection) -> None:
    alive.poll(None)
    os._exit(1)
