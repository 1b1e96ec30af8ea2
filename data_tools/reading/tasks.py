"""How the work is cut: tasks of some bytes of a file, and what makes a finished one still valid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_tools.reading.inputs import InputFile
from data_tools.reading.limits import MAX_ROW_BYTES
from megatron_kaiyuan.errors import UserError, require_between
from megatron_kaiyuan.outputs import identity_of

# The end of messages about a run that stops.
KEPT = "finished shards are kept: run the command again"

# Goes up when a shard of the same input and settings would get other content than before.
_SHARD_VERSION = 4
# Some thousand tasks for a large run: few enough for one folder, enough for any number of processes.
_TASKS, _SMALLEST_TASK, _LARGEST_TASK = 4096, 8 << 20, 2 << 30
# What a Parquet file stores in a byte is several bytes of text, and a task without a row group is wasted.
_PARQUET_FACTOR = 8
# What a file costs besides its bytes (to look at, to open, to look at again), in bytes that are tokenized meanwhile.
_FILE_COST = 8 << 10
# A document's id has 20 bits for its task. Each task is a file or more, and small ones are most of their own cost.
# Settings, and words of the tokenizer's description, that the content of shards does not depend on; its fingerprint is
# among the others.
_NO_CONTENT = ("tokenizer", "eod_token", "tokenizer_engine", "path")
_SMALL_TASK, _MOST_SMALL_TASKS, _MOST_TASKS = 1 << 20, 1 << 16, 1 << 20


@dataclass(frozen=True)
class Settings:
    """What becomes of a row.

    Attributes:
        tokenizer: file or folder, as TextTokenizer takes it.
        json_keys: fields to tokenize; each gives a corpus of its own.
        score_keys: number fields that go into the metadata; a row without one has a missing score.
        meta_keys: other fields that go into the metadata, as text.
        append_eod: end each document with the tokenizer's end-of-document id.
        text_column: column of Parquet files that holds the one json key's text, where its name is another.
        text_documents: what is a document in plain text, "line" or "file".
        max_characters: rows with a longer text are left out; 0 for no limit.
        tokenizer_engine: how to encode; the result does not depend on it.
        held_out: share of the documents that go into a corpus of their own, by a hash of the text; 0 for none.
        max_row_bytes: a longer line, or row of texts in Parquet, is a bad row and is not held; 0 for no limit.
    """

    tokenizer: Path
    json_keys: tuple[str, ...] = ("text",)
    score_keys: tuple[str, ...] = ()
    append_eod: bool = True
    eod_token: str | None = None
    meta_keys: tuple[str, ...] = ()
    text_column: str | None = None
    text_documents: str = "line"
    max_characters: int = 0
    tokenizer_engine: str = "auto"
    max_row_bytes: int = MAX_ROW_BYTES
    held_out: float = 0.0


@dataclass(frozen=True)
class Task:
    """A part of a file; parts of one file follow each other and leave nothing out.

    Attributes:
        start, stop: bytes as stored. To it belong the lines and the row groups that begin at start <= byte < stop.
        name: fingerprint of the input and of the settings, so that a changed one has no finished shard.
    """

    file: InputFile
    start: int
    stop: int
    name: str

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def has_columns(self) -> bool:
        """Whether its rows come from a table (Parquet), and not from lines or texts."""
        return self.file.format == "parquet"


def cut_tasks(
    files: Sequence[InputFile], settings: Settings, tokenizer: Mapping[str, Any], task_bytes: int = 0
) -> list[Task]:
    """All tasks in the order of their documents. They do not depend on who will do them.

    Args:
        tokenizer: its description, for the fingerprint.
        task_bytes: wanted size; 0 takes one that fits the inputs.

    Raises:
        UserError: `task_bytes` is negative, or makes too many tasks.
    """
    _check_task_bytes(files, settings, task_bytes)
    wanted = _wanted(files, task_bytes)
    about = _about(settings, tokenizer)
    tasks = []
    for file in files:
        step = wanted * (_PARQUET_FACTOR if file.format == "parquet" and not task_bytes else 1)
        whole = is_whole(file, settings)
        # An empty file has one empty task, so that the corpus names it among its sources.
        for start in range(0, max(file.size, 1), max(file.size, 1) if whole else step):
            stop = file.size if whole else min(start + step, file.size)
            tasks.append(Task(file, start, stop, _name(file, start, stop, about)))
    return tasks


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that are done one after another and leave one shard: a part of a file, or several small files.

    Those of a group are all of Parquet files, or of none.

    Attributes:
        name: fingerprint of all of them.
    """

    tasks: tuple[Task, ...]
    name: str

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> TaskGroup:
        return cls(tuple(tasks), _group_name(tasks))

    @property
    def size(self) -> int:
        return sum(task.size for task in self.tasks)

    @property
    def place(self) -> str:
        """Its files, for messages."""
        return files_in_words([task.file for task in self.tasks])


def cut_groups(
    files: Sequence[InputFile], settings: Settings, tokenizer: Mapping[str, Any], task_bytes: int = 0
) -> list[TaskGroup]:
    """As `cut_tasks`, with small files in groups of about the size of a task: a shard costs more than a small file.

    Raises:
        UserError: as `cut_tasks`.
    """
    wanted = _wanted(files, task_bytes)
    groups: list[list[Task]] = []
    room, columns = 0, False
    for task in cut_tasks(files, settings, tokenizer, task_bytes):
        whole = (task.start, task.stop) == (0, task.file.size)
        cost = task.size + _FILE_COST
        if not (groups and whole and cost <= room and columns == task.has_columns):
            groups.append([])
            # Nothing follows a part of a file, so that a shard has rows of one file only or of whole files.
            room, columns = wanted if whole else 0, task.has_columns
        groups[-1].append(task)
        room -= cost
    return [TaskGroup.of(tasks) for tasks in groups]


def files_in_words(files: Sequence[InputFile]) -> str:
    """The first of some files and how many more there are, for messages."""
    more = len(files) - 1
    return f"{files[0].name}{f' and {more:,} more file' + 's' * (more > 1) if more else ''}"


def work_identity(files: Sequence[InputFile], settings: Settings, tokenizer: Mapping[str, Any], key: str) -> str:
    """Fingerprint of all that the corpus of one json key is made from, however it is cut into tasks."""
    return identity_of("preprocess", key, [file.identity() for file in files], _about(settings, tokenizer))


def is_whole(file: InputFile, settings: Settings) -> bool:
    """Whether a file can only be read from its beginning to its end."""
    return bool(file.packing) or (file.format == "text" and settings.text_documents == "file")


def _wanted(files: Sequence[InputFile], task_bytes: int) -> int:
    total = sum(file.size for file in files)
    return task_bytes or min(max(total // _TASKS, _SMALLEST_TASK), _LARGEST_TASK)


def _check_task_bytes(files: Sequence[InputFile], settings: Settings, task_bytes: int) -> None:
    require_between("--task-bytes", task_bytes, 0, 2**63 - 1)
    if task_bytes:
        count = sum(1 if is_whole(file, settings) else -(-file.size // task_bytes) for file in files)
        most = _MOST_SMALL_TASKS if task_bytes < _SMALL_TASK else _MOST_TASKS
        # Files that are a task each are not its doing.
        if count > max(most, len(files)):
            raise UserError(
                f"--task-bytes {task_bytes}: makes {count:,} tasks of the input, more than {most:,}; give more bytes, "
                "or 0, which fits them to the input"
            )


def _about(settings: Settings, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What the content of shards depends on beside the input; the tokenizer's description stands for its settings."""
    about = {**asdict(settings), **tokenizer, "version": _SHARD_VERSION}
    if not settings.held_out:
        del about["held_out"]
    return {name: value for name, value in about.items() if name not in _NO_CONTENT}


def _name(file: InputFile, start: int, stop: int, about: Mapping[str, Any]) -> str:
    content = json.dumps([file.identity(), start, stop, about, *_cut_of(file, start, stop)], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(content.encode())


def _cut_of(file: InputFile, start: int, stop: int) -> tuple[str, ...]:
    """How it is reckoned which row groups a part of a table has; earlier versions reckoned otherwise."""
    return ("sizes before compression",) if file.format == "parquet" and (start, stop) != (0, file.size) else ()


def _group_name(tasks: Sequence[Task]) -> str:
    if len(tasks) == 1:
        return tasks[0].name
    return xxhash.xxh3_128_hexdigest("\n".join(task.name for task in tasks).encode())
