"""A stage: tasks that do not depend on each other, and the files that each writes, whole or absent, made once.

Every engine does a task by `finish`, so that all have the same guarantees: under a lock, skipped when its record is
there, the record written last. A process that is killed leaves only finished tasks and temporary names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_tools.reading.place import Place
from data_tools.reading.tasks import KEPT
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Count, FileName, Form, require_form
from megatron_kaiyuan.locks import lock

# What a task leaves beside its files: counts and whatever else later stages need, as JSON.
Record = dict[str, Any]


class _RecordForm(Form):
    files: dict[FileName, Count]
    record: Record


class Target:
    """Where a task writes: files of its own name in the folder of its stage."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.files: dict[str, int] = {}

    def path(self, suffix: str) -> Path:
        """The final path of one of the task's files, as `suffix` says: ".parquet"."""
        return self.folder / f"{self.name}{suffix}"

    @contextmanager
    def file(self, suffix: str) -> Iterator[Path]:
        """A temporary path that becomes `path(suffix)` when the block ends well."""
        path = self.path(suffix)
        with atomic_path(path) as temporary:
            yield temporary
        self.files[path.name] = path.stat().st_size


# Does a task and returns its record. It is pickled for other processes and machines.
Do = Callable[[Any, Target], Record]


@dataclass(frozen=True)
class Stage:
    """Tasks of one kind.

    Attributes:
        title: what is being done, for the progress: "sign".
        folder: where records and files go; seen by every process that takes part.
        do: the work; a function of a module, or an object that can be pickled.
        tasks: each can be pickled. The order of the records is that of the tasks.
        names: of the tasks, for their files. A name stands for one content: it holds a fingerprint of the input and the
            settings, unless the folder's name does.
        sizes: how much work each is, in any unit; the largest is done first.
    """

    title: str
    folder: Path
    do: Do
    tasks: Sequence[Any]
    names: Sequence[str]
    sizes: Sequence[int] = field(default=())

    def by_size(self) -> list[int]:
        """Numbers of the tasks, the largest first, so that no process is left with a long one at the end."""
        sizes = self.sizes or [1] * len(self.tasks)
        return sorted(range(len(self.tasks)), key=lambda number: -sizes[number])

    def finished(self, number: int) -> Record | None:
        """The record of a task that was done before and whose files are still there."""
        try:
            path = self._record(number)
            found = require_form(path, read_sealed_json(path, "record of a task"), _RecordForm)
            there = all((self.folder / name).stat().st_size == size for name, size in found.files.items())
            return found.record if there else None
        except (UserError, OSError):
            return None

    def finish(self, number: int, *, wait: bool = True) -> Record | None:
        """Do a task unless it is finished; return its record.

        Args:
            wait: for a process that is doing the task; else None is returned.

        Raises:
            UserError: the input cannot be read or the files cannot be written.
        """
        if (record := self.finished(number)) is not None:
            return record
        try:
            with lock(self.folder / f"{self.names[number]}.lock", seconds=None if wait else 0, keep=False):
                if (record := self.finished(number)) is not None:
                    return record
                return self._write(number)
        except BlockingIOError:
            return None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(f"{self.folder}: cannot be written ({reason}); make room, {KEPT}") from error

    def _write(self, number: int) -> Record:
        # First, so that there is never a record of other files than are there.
        self._record(number).unlink(missing_ok=True)
        target = Target(self.folder, self.names[number])
        record = self.do(self.tasks[number], target)
        write_sealed_json(self._record(number), {"files": target.files, "record": record})
        return record

    def _record(self, number: int) -> Path:
        return self.folder / f"{self.names[number]}.task.json"


class Engine(Protocol):
    """Who does the tasks of a stage.

    Attributes:
        is_first: whether this process also does what is done once: it prints, and puts the product in its place.
        place: which of how many ranks this is.
        workers: processes on this machine that this one starts.
    """

    is_first: bool
    place: Place
    workers: int

    def run(self, stage: Stage) -> list[Record]:
        """Finish all tasks of a stage; their records in the order of the tasks.

        Raises:
            UserError: a task failed, or a process died.
        """
        ...
