"""Datasets of documents as `--input` names them, and the shards that they are cut into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.reading.documents import Shard
from data_tools.reading.inputs import InputFile, find_inputs
from data_tools.reading.tasks import Settings, cut_tasks
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_sealed_json
from megatron_kaiyuan.outputs import RECORD, identity_of

# A name becomes a folder; whatever has another character is a path with '=' in it.
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Dataset:
    """Files that belong together.

    Attributes:
        name: "" where the input has none.
        shards: in the order of the documents; they do not depend on the engine or its number of processes.
    """

    name: str
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return sum(file.size for file in self.files)


def reading_settings(
    json_key: str = "text", text_column: str | None = None, text_documents: str = "line", max_characters: int = 0
) -> Settings:
    """How documents are read, in the terms of preprocessing.

    Raises:
        UserError: a value is not known.
    """
    if text_documents not in ("line", "file"):
        raise UserError(f"--text-documents {text_documents}: is not known; use line or file")
    if max_characters < 0:
        raise UserError(f"--max-characters {max_characters}: must be at least 0")
    return Settings(
        Path(), (json_key,), text_column=text_column, text_documents=text_documents, max_characters=max_characters
    )


def find_datasets(
    words: Sequence[str], settings: Settings, task_bytes: int = 0, *, quiet: bool = False
) -> list[Dataset]:
    """The datasets of `--input`: files, folders, patterns or URLs, each with `NAME=` before it or not.

    Words of one name make one dataset. A folder that an earlier step wrote stands for its documents without those that
    it dropped; its datasets keep their names unless one is given. Datasets are numbered in the order in which their
    names come first.

    Raises:
        UserError: as `find_inputs`; a file is in two datasets.
    """
    if task_bytes < 0:
        raise UserError(f"--task-bytes {task_bytes}: must be at least 0")
    by_name: dict[str, list[str]] = {}
    for word in words:
        named = None if Path(word).exists() else _NAMED.fullmatch(word)
        for name, path in _of_folder(named[2] if named else word):
            by_name.setdefault(named[1] if named else name, []).append(path)
    found = []
    for number, (name, named_words) in enumerate(by_name.items()):
        files = find_inputs(named_words, quiet=quiet)
        tasks = cut_tasks(files, settings, {}, task_bytes)
        shards = tuple(Shard(number, i, name, task) for i, task in enumerate(tasks))
        found.append(Dataset(name, tuple(files), shards))
    if not found:
        find_inputs([])
    _refuse_shared(found)
    return found


def _of_folder(word: str) -> list[tuple[str, str]]:
    """(name, path) of the datasets in a folder of documents; of anything else, the word itself."""
    try:
        manifest = read_sealed_json(Path(word) / RECORD, "manifest of documents")
    except (UserError, OSError, ValueError):
        return [("", word)]
    if manifest.get("format") != "kaiyuan-documents" or not (Path(word) / "documents").is_dir():
        return [("", word)]
    return [(name, str(Path(word) / "documents" / name)) for name in manifest["datasets"]]


def datasets_identity(datasets: Sequence[Dataset]) -> str:
    """Fingerprint of the input, and of how it is cut, on which document ids depend."""
    return identity_of([[dataset.name, [shard.task.name for shard in dataset.shards]] for dataset in datasets])


def _refuse_shared(datasets: Sequence[Dataset]) -> None:
    owners: dict[str, str] = {}
    for dataset in datasets:
        for file in dataset.files:
            if (other := owners.setdefault(file.location, dataset.name)) != dataset.name:
                raise UserError(f"{file.name}: is in the datasets {other!r} and {dataset.name!r}; name it in one only")
