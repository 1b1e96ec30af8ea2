"""A thread in each rank that ends the job when ranks stop coming further, and reports which of them is to blame.

Every rank reports through the launcher's store, a few times within the time-out, that it is alive and where its main
thread is. A rank that hangs leaves all others waiting in a collective. A few of them look twice at the reports of all
(`search.py`): a rank without a new report between the looks is stopped or dead; else, one that is not waiting in a
collective is the one that the others wait for. Then every rank writes its Python stacks to its log and ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import NoReturn, TypeVar

import torch

from megatron_kaiyuan import exit_codes
from megatron_kaiyuan.cluster import search
from megatron_kaiyuan.cluster.bad_nodes import node_name
from megatron_kaiyuan.cluster.discover import Rank
from megatron_kaiyuan.cluster.last_words import LastWords
from megatron_kaiyuan.cluster.search import Search
from megatron_kaiyuan.cluster.verdict import Alive, Verdict, judge
from megatron_kaiyuan.logs import log_at_once, write_at_once

_FAILED = "kaiyuan/failed"
_LONGEST_PERIOD_SECONDS = 5.0

T = TypeVar("T")


class Watchdog:
    """The thread of one rank.

    Args:
        timeout: seconds that the main thread may take from one beat to the next.
        start_timeout: the same before the first beat, while data and checkpoints are opened.
        last_words: what is written before a hanging job is ended.
    """

    def __init__(self, who: Rank, timeout: float, start_timeout: float, last_words: LastWords | None = None):
        self._last_words = last_words
        self._rank, self._world = who.rank, who.world_size
        self._timeout, self._limit = timeout, max(timeout, start_timeout)
        self._period = min(_LONGEST_PERIOD_SECONDS, timeout / 10)
        self._beats, self._count, self._last_beat = 0, 0, time.monotonic()
        self._main = threading.main_thread().ident or 0
        self._master = f"{who.master_address}:{who.master_port}"
        self._self = {"host": node_name(), "process": os.getpid(), "born": _born(os.getpid())}
        # A connection of its own: another thread's call on a shared one would keep this thread waiting.
        self._store = torch.distributed.TCPStore(
            who.master_address, who.master_port, is_master=False, timeout=timedelta(seconds=max(1.0, self._period))
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # Its handler of SIGABRT writes the stacks even of a process that holds its interpreter lock for ever.
        faulthandler.enable()

    def start(self) -> None:
        # At once, so that the others know this process if it is the first to hang.
        self._exchange(None)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def beat(self) -> None:
        """The main thread has come further."""
        self._beats += 1
        self._last_beat = time.monotonic()
        self._limit = self._timeout

    def tell_failure(self) -> None:
        """End the other ranks soon: this one is about to end, and they may wait for it in a collective."""
        self._ask(lambda: self._store.set(_FAILED, str(self._rank)))

    def _watch(self) -> None:
        searching: Search | None = None
        while not self._ended.wait(self._period):
            left = self._limit - (time.monotonic() - self._last_beat)
            if left > 6 * self._period:
                searching = None
            elif searching is None:
                searching = Search(self._store, self._rank, self._world, self._beats, self._master)
            answered, verdict = self._exchange(searching)
            if verdict is None and not answered and left <= 3 * self._period:
                verdict = judge({}, [], self._master)
            if verdict is not None:
                self._end_hanging_job(verdict)

    def _exchange(self, searching: Search | None) -> tuple[bool, Verdict | None]:
        """Report, hear whether a rank has failed, and take a step of the search; did the store answer, and what?"""

        def talk() -> tuple[bool, Verdict | None]:
            self._speak()
            failed = self._store.check([_FAILED])
            return failed, searching.step() if searching is not None and not failed else None

        answer = self._ask(talk)
        failed, verdict = answer or (False, None)
        if failed:
            self._leave_failed_job()
        return answer is not None, verdict

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Return the store's answer, or None after a period: a client waits for ever for a server that is stopped."""
        heard: queue.SimpleQueue[T | None] = queue.SimpleQueue()

        def talk() -> None:
            answer = None
            with contextlib.suppress(RuntimeError):
                answer = question()
            heard.put(answer)

        threading.Thread(target=talk, name="watchdog's talk", daemon=True).start()
        try:
            return heard.get(timeout=self._period)
        except queue.Empty:
            return None

    def _speak(self) -> None:
        frames = list(_frames(sys._current_frames().get(self._main)))
        waiting = any(map(_is_communication, frames))
        where = _place(frames[0]) if frames else "an unknown place"
        self._count += 1
        said = Alive(self._count, self._beats, waiting, where, **self._self)  # type: ignore[arg-type]
        search.report(self._store, self._rank, said)

    def _leave_failed_job(self) -> NoReturn:
        """Another rank has said why. The main thread may leave in good order first."""
        if not self._ended.wait(2 * self._period):
            os._exit(exit_codes.FAILED)
        sys.exit()

    def _end_hanging_job(self, verdict: Verdict) -> NoReturn:
        # Who gave it prints it, before it ends a silent rank, whose end then ends others; without a store, each.
        if verdict.by in (self._rank, None):
            log_at_once(logging.ERROR, f"no rank has come further for {self._timeout:g} seconds: {verdict.message}")
            if self._last_words is not None:
                self._last_words.name_nodes(verdict.hosts, verdict.message)
        # Before any rank is ended, which may end the others.
        if self._last_words is not None:
            self._last_words.write_flight_recorder()
        self._write_stacks()
        for rank in verdict.silent:
            if rank != self._rank and rank in verdict.accused:
                self._wake_to_write_its_stacks(verdict.accused[rank])
        # The others write too, which our end would interrupt.
        time.sleep(self._period)
        os._exit(exit_codes.FAILED)

    def _write_stacks(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = [f"stacks of process {os.getpid()}, {self._beats} beats:"]
        for identity, frame in sys._current_frames().items():
            if identity == threading.get_ident():
                continue
            lines.append(f"thread {names.get(identity, identity)}:")
            lines += "".join(traceback.format_stack(frame)).splitlines()
        # In one piece, and marked: all ranks of a host may write to one log.
        write_at_once("\n".join(f"[rank {self._rank}] {line}" for line in lines))

    def _wake_to_write_its_stacks(self, other: Alive) -> None:
        """On this host: let a process that does not answer write its stacks and end."""
        here = other.host == self._self["host"] and other.born == _born(other.process)
        if here and other.born:
            with contextlib.suppress(OSError):
                os.kill(other.process, signal.SIGABRT)
                os.kill(other.process, signal.SIGCONT)


@contextlib.contextmanager
def watched(watchdog: Watchdog) -> Iterator[Watchdog]:
    """The watchdog at work for the body of the `with`; an exception is reported to the other ranks."""
    watchdog.start()
    try:
        yield watchdog
    except BaseException:
        watchdog.tell_failure()
        raise
    finally:
        watchdog.stop()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_communication(frame: FrameType) -> bool:
    """A call of torch.distributed, but for the launcher's part, which wraps the whole training."""
    file = frame.f_code.co_filename
    return "torch/distributed/" in file and "torch/distributed/elastic/" not in file


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def _born(process: int) -> str:
    """Return when a process started, as /proc reports it; empty where there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
