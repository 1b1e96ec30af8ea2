"""The processes of this machine."""

from __future__ import annotations

from contextlib import ExitStack, closing

from data_tools.engines.pool import Pool
from data_tools.engines.stage import Record, Stage
from data_tools.reading.place import Place
from megatron_kaiyuan.progress import Progress


class LocalEngine:
    """Does the tasks in `workers` processes, or in this one where one is enough."""

    is_first = True
    place = Place()

    def __init__(self, workers: int):
        self.workers = workers

    def run(self, stage: Stage) -> list[Record]:
        """See `Engine.run`."""
        records = {number: stage.finished(number) for number in range(len(stage.tasks))}
        left = [number for number in stage.by_size() if records[number] is None]
        workers = min(self.workers, len(left))
        with ExitStack() as stack:
            # The pool before the bar, whose thread would keep it from forking.
            pool = stack.enter_context(Pool(_Finisher(stage), workers)) if workers > 1 else None
            progress = stack.enter_context(Progress(stage.title, len(stage.tasks), done=len(stage.tasks) - len(left)))
            if pool is None:
                for number in left:
                    records[number] = stage.finish(number)
                    progress.advance()
            else:
                for call, record in stack.enter_context(closing(pool.run("finish", [(number,) for number in left]))):
                    records[left[call]] = record
                    progress.advance()
        return [record for _, record in sorted(records.items()) if record is not None]


class _Finisher:
    """What a process of the pool is asked for."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def finish(self, number: int) -> Record | None:
        return self._stage.finish(number)
