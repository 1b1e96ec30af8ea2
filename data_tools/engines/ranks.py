"""The ranks of mpirun or srun, or the elements of a Slurm array: each claims tasks through the file system they share.

Ranks need no daemon and send no messages. When a rank dies, the system releases its locks and another rank does its
task. When all ranks die, the same command continues from the finished tasks. On a file system without locks two
machines may do a task twice, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from data_tools.engines.pool import Pool
from data_tools.engines.stage import Record, Stage
from data_tools.reading.place import Place
from megatron_kaiyuan.cluster.waiting import Waiting
from megatron_kaiyuan.progress import Progress

_POLL_SECONDS = (0.05, 2.0)
# Tasks that a line names.
_NAMED = 4
T = TypeVar("T")


class RanksEngine:
    """Does tasks until those of all ranks are finished.

    Args:
        workers: processes of this rank, each of which claims tasks for itself.
    """

    def __init__(self, place: Place, workers: int = 1):
        self.place, self.workers = place, workers
        self.is_first = place.rank == 0

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        first, world = self.place.rank * self.workers, self.place.world * self.workers
        claimer = _Claimer(stage)
        if self.workers == 1:
            return claimer.claim(first, world)
        with Pool(claimer, self.workers) as pool:
            found = dict(pool.run("claim", [(first + number, world) for number in range(self.workers)]))
        return list(found[0])


class _Claimer:
    """What a process of a rank is asked for."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def claim(self, process: int, processes: int) -> list[Record]:
        """Do tasks until all are finished, whoever does them; the records of all."""
        stage = self._stage
        records: dict[int, Record] = {}
        left = claim_order(stage.by_size(), process, processes)
        pause = Pause(lambda: f"{in_words([stage.names[one] for one in left])} of {stage.title!r} in {stage.folder}")
        with Progress(stage.title if process == 0 else "", len(left)) as progress:
            while left:
                busy = []
                for number in left:
                    record = stage.finish(number, wait=False)
                    if record is None:
                        busy.append(number)
                    else:
                        records[number] = record
                        progress.advance()
                pause(len(busy) == len(left))
                left = busy
        return [record for _, record in sorted(records.items())]


def claim_order(order: Sequence[T], process: int, processes: int) -> list[T]:
    """Tasks from the largest to the smallest, begun at another one by each process: so they rarely meet at a lock."""
    first = len(order) * process // processes if len(order) >= processes else 0
    return [*order[first:], *order[:first]]


def in_words(names: Sequence[str]) -> str:
    """Return `tasks 000004, 000007`, cut after some names."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"task{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"


class Pause:
    """Waits while other processes do all that is left: the longer, the longer it takes.

    Args:
        left: finds a phrase for what they do, for the line that a long wait prints.
    """

    def __init__(self, left: Callable[[], str]) -> None:
        self._seconds = _POLL_SECONDS[0]
        self._left = left
        self._line: Waiting | None = None

    def __call__(self, all_busy: bool) -> None:
        if not all_busy:
            self._seconds, self._line = _POLL_SECONDS[0], None
            return
        self._line = self._line or Waiting(lambda: f"other processes to finish {self._left()}")
        self._line.look()
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, _POLL_SECONDS[1])
