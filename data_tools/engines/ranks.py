"""The ranks of mpirun or srun, or the elements of a Slurm array: each claims tasks through the file system they share.

There is no daemon and no message. A rank that dies gives its locks back and another rank does its task; where all die,
the same command continues. On a file system without locks two machines may do a task twice, with the same result.
"""

from __future__ import annotations

import time

from data_tools.engines.progress import Progress
from data_tools.engines.stage import Record, Stage
from data_tools.reading.place import Place

_POLL_SECONDS = (0.05, 2.0)


class RanksEngine:
    """Does tasks until those of all ranks are finished: a rank is one process."""

    def __init__(self, place: Place):
        self._place = place
        self.is_first = place.rank == 0

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        records: dict[int, Record] = {}
        order = stage.by_size()
        # Ranks begin at different tasks, so that they rarely meet at a lock.
        first = len(order) * self._place.rank // self._place.world
        left = order[first:] + order[:first] if len(order) >= self._place.world else order
        pause = _POLL_SECONDS[0]
        with Progress(stage.title if self.is_first else "", len(order)) as progress:
            while left:
                busy = []
                for number in left:
                    record = stage.finish(number, wait=False)
                    if record is None:
                        busy.append(number)
                    else:
                        records[number] = record
                        if self.is_first:
                            progress.advance(len(records))
                if len(busy) == len(left):
                    time.sleep(pause)
                    pause = min(2 * pause, _POLL_SECONDS[1])
                else:
                    pause = _POLL_SECONDS[0]
                left = busy
        return [record for _, record in sorted(records.items())]
