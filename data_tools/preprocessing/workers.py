"""What the processes of a preprocessing run are asked for: to prove engines and to write shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_tools.engines.pool import Pool
from data_tools.preprocessing.progress import Meter, meter_path
from data_tools.preprocessing.shards import ShardRecord, Shards, ShardWriter
from data_tools.reading.tasks import Settings, TaskGroup
from data_tools.tokenizers.tokenizer import TextTokenizer


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker needs to know."""

    settings: Settings
    prefixes: tuple[Path, ...]
    rank: int
    max_bad_rows: int

    def writer(self, tokenizer: TextTokenizer) -> ShardWriter:
        """For the process that asks."""
        shards = Shards(self.prefixes)
        meter = Meter(meter_path(shards.folders[0], self.rank, os.getpid()))
        return ShardWriter(self.settings, shards, self.max_bad_rows, meter, tokenizer)


class Worker:
    """What a process of the pool can be asked for. Forked processes share the tokenizer, others load their own."""

    def __init__(self, job: WorkerSettings, tokenizer: TextTokenizer | None = None):
        self._job = job
        self._shared = tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": self._job, "_shared": None}

    def prepare_fork(self) -> None:
        """Load what forked processes share."""
        self._tokenizer.load()

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        settings = self._job.settings
        return self._shared or TextTokenizer(settings.tokenizer, settings.eod_token, settings.tokenizer_engine)

    @cached_property
    def _writer(self) -> ShardWriter:
        return self._job.writer(self._tokenizer)

    def difference(self, engine: str, texts: Sequence[str], before: int) -> str | None:
        """What `TextTokenizer.difference` says."""
        return self._tokenizer.difference(engine, texts, before)

    def write(self, group: TaskGroup, engine: str, wait: bool = True) -> ShardRecord | None:
        """What `ShardWriter.write` does, with that engine of the tokenizer."""
        self._tokenizer.use(engine)
        return self._writer.write(group, wait=wait)


class WriterPool(Pool):
    """Processes with a tokenizer each.

    Raises:
        UserError: from every method, a process died.
    """

    def __init__(self, job: WorkerSettings, workers: int, tokenizer: TextTokenizer):
        super().__init__(Worker(job, tokenizer), workers)

    def difference(self, engine: str, texts: Sequence[str]) -> str | None:
        """What `TextTokenizer.difference` says, the texts divided among the processes."""
        step = max(-(-len(texts) // (4 * self.size)), 1)
        calls = [(engine, texts[start : start + step], start) for start in range(0, max(len(texts), 1), step)]
        found = dict(self.run("difference", calls))
        return next((found[i] for i in sorted(found) if found[i] is not None), None)

    def write(self, groups: Sequence[TaskGroup], engine: str) -> Iterator[tuple[TaskGroup, ShardRecord | None]]:
        """Do the tasks of groups. Each group comes with its record when it is done, in any order; with None while
        another process does it.

        Raises:
            UserError: the first failing task's error.
        """
        for number, record in self.run("write", [(group, engine, False) for group in groups]):
            yield groups[number], record
