"""Datasets of documents as `--input` names them, and the shards that they are cut into."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from data_tools.reading.inputs import InputFile, find_inputs
from data_tools.reading.limits import MAX_ROW_BYTES
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings, cut_groups
from data_tools.steps.folder import FOLDERS, is_documents, read_documents_manifest, require_files
from data_tools.steps.shards import DOCUMENTS
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.outputs import identity_of

# A name becomes a folder; whatever has another character is a path with '=' in it.
NAMED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?)=(.+)", re.DOTALL)


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
    json_key: str = "text",
    text_column: str | None = None,
    text_documents: str = "line",
    max_characters: int = 0,
    max_row_bytes: int = MAX_ROW_BYTES,
) -> Settings:
    """How documents are read, in the terms of preprocessing.

    Raises:
        UserError: a value is not known.
    """
    if text_documents not in ("line", "file"):
        raise UserError(f"--text-documents {text_documents}: is not known; use line or file")
    for option, value in (("--max-characters", max_characters), ("--max-row-bytes", max_row_bytes)):
        if value < 0:
            raise UserError(f"{option} {value}: must be at least 0")
    return Settings(
        Path(),
        (json_key,),
        text_column=text_column,
        text_documents=text_documents,
        max_characters=max_characters,
        max_row_bytes=max_row_bytes,
    )


def find_datasets(
    words: Sequence[str], settings: Settings, task_bytes: int = 0, *, quiet: bool = False
) -> list[Dataset]:
    """The datasets of `--input`: files, folders, patterns or URLs, each with `NAME=` before it or not.

    Words of one name make one dataset. A folder that an earlier command wrote brings its datasets with their names.
    Datasets are numbered in the order in which their names come first.

    Raises:
        UserError: as `find_inputs` and `cut_groups`; a name is not allowed, or a file is in two datasets.
    """
    by_name: dict[str, list[str]] = {}
    for word in words:
        for name, path in _named(word):
            by_name.setdefault(name, []).append(path)
    found = []
    for number, (name, named_words) in enumerate(by_name.items()):
        files = find_inputs(named_words, quiet=quiet)
        groups = cut_groups(files, settings, {}, task_bytes)
        shards = tuple(Shard(number, i, name, group) for i, group in enumerate(groups))
        found.append(Dataset(name, tuple(files), shards))
    if not found:
        find_inputs([])
    if "" in by_name and len(by_name) > 1:
        raise UserError(
            f"--input {by_name[''][0]}: is a dataset without a name, others have one; write NAME=PATH for all or none"
        )
    _refuse_shared(found)
    return found


def datasets_identity(datasets: Sequence[Dataset]) -> str:
    """Fingerprint of the input, and of how it is cut, on which document ids depend."""
    return identity_of([[dataset.name, [shard.group.name for shard in dataset.shards]] for dataset in datasets])


def _named(word: str) -> list[tuple[str, str]]:
    """Names and paths of the datasets that a word stands for."""
    is_path = _is_there(word)
    match = None if is_path else NAMED.fullmatch(word)
    name, path = (match[1], match[2]) if match else ("", word)
    if not match and not is_path:
        _refuse_wrong_name(word)
    if not is_documents(Path(path)):
        return [(name, path)]
    manifest = read_documents_manifest(Path(path))
    require_files(Path(path), manifest["files"])
    folder = Path(path, FOLDERS[DOCUMENTS])
    return [(name or dataset, str(folder / dataset)) for dataset in manifest["datasets"]]


def _is_there(path: str) -> bool:
    """Whether it is a file or folder, or a pattern of some."""
    return os.path.exists(path) or bool(glob(path, recursive=True))


def _refuse_wrong_name(word: str) -> None:
    """Refuse `NAME=PATH` when PATH exists but NAME is not a valid name of a dataset.

    Raises:
        UserError: saying which names are allowed.
    """
    name, equals, path = word.partition("=")
    if equals and "://" not in name and _is_there(path):
        raise UserError(
            f"--input {word}: {name!r} cannot name a dataset; a name has letters from A to Z, digits, '_', '-' and '.' "
            "within it, and begins with a letter or digit"
        )


def _refuse_shared(datasets: Sequence[Dataset]) -> None:
    owners: dict[str, str] = {}
    for dataset in datasets:
        for file in dataset.files:
            if (other := owners.setdefault(file.location, dataset.name)) != dataset.name:
                raise UserError(f"{file.name}: is in the datasets {other!r} and {dataset.name!r}; name it in one only")
