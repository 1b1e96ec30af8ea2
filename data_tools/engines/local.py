"""The processes of this machine."""

from __future__ import annotations

from contextlib import closing

from data_tools.engines.pool import Pool
from data_tools.engines.progress import Progress
from data_tools.engines.stage import Record, Stage


class LocalEngine:
    """Does the tasks in `workers` processes, or in this one where one is enough."""

    is_first = True

    def __init__(self, workers: int):
        self._workers = workers

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        records = {number: stage.finished(number) for number in range(len(stage.tasks))}
        left = [number for number in stage.by_size() if records[number] is None]
        workers = min(self._workers, len(left))
        with Progress(stage.title, len(stage.tasks), len(stage.tasks) - len(left)) as progress:
            if workers <= 1:
                for number in left:
                    records[number] = stage.finish(number)
                    progress.advance()
            else:
                with Pool(_Finisher(stage), workers) as pool, closing(pool.run("finish", [(n,) for n in left])) as done:
                    for call, record in done:
                        records[left[call]] = record
                        progress.advance()
        return [record for _, record in sorted(records.items()) if record is not None]


class _Finisher:
    """What a process of the pool is asked for."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def finish(self, number: int) -> Record | None:
        return self._stage.finish(number)
