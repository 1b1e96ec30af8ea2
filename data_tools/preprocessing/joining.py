"""From shards to corpora: whether all is there, the bad rows with their places, and the order of the last steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from data_tools.corpora.corpus_files import read_manifest
from data_tools.corpora.merge import join_corpora
from data_tools.preprocessing.progress import METERS
from data_tools.preprocessing.shards import RecordForm, ShardRecord, Shards, is_there
from data_tools.reading.bad_rows import too_many
from data_tools.reading.tasks import Task, TaskGroup
from data_tools.reading.text import BadPlace
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.outputs import Output

_JOINED = "joined.json"
# What shards are called, and what lies beside them.
_OURS = re.compile(r"[0-9a-f]{32}\.|joined\.json|run\.lock$")

Done = tuple[TaskGroup, ShardRecord]


class _Joined(Form):
    work: str
    records: list[RecordForm]


class _Bad(Form):
    task: Count
    row: Count
    offset: Count | None
    reason: str


def within_limit(shards: Shards, done: Iterable[Done], max_bad_rows: int) -> Iterator[Done]:
    """Pass on what is done.

    Raises:
        UserError: together they have more bad rows than are allowed; the message names the first one beyond.
    """
    count = 0
    for group, record in done:
        if count + record.bad_rows > max_bad_rows:
            task, place = next(islice(_bad_places(shards, group), max_bad_rows - count, None))
            raise too_many(task, place, count + record.bad_rows, max_bad_rows)
        count += record.bad_rows
        yield group, record


def finished_groups(shards: Shards, groups: Sequence[TaskGroup]) -> list[Done]:
    """All groups with their records.

    Raises:
        UserError: one is not finished.
    """
    found = [(group, shards.finished(group)) for group in groups]
    done = [(group, record) for group, record in found if record]
    if len(done) < len(groups):
        first = next(group for group, record in found if record is None)
        raise UserError(
            f"--merge-only: {len(groups) - len(done)} of {len(groups)} shards are not finished, the first is of "
            f"{first.tasks[0].file.name}; run the ranks again with the same arguments"
        )
    return done


def join(shards: Shards, outputs: Mapping[Path, str], done: Sequence[Done], bad_rows: Path) -> None:
    """Make the corpora and, when there is a bad row, the file `bad_rows`; then note in the shards that this is done.

    Args:
        outputs: the identity of the corpus at each prefix.
    """
    for i, (prefix, identity) in enumerate(outputs.items()):
        join_corpora([shards.corpora(group)[i] for group, _ in done], prefix, identity=identity)
    _write_bad_rows(shards, done, bad_rows)
    records = [vars(record) for _, record in done]
    write_sealed_json(
        shards.folders[0] / _JOINED, {"work": _fingerprint(group for group, _ in done), "records": records}
    )


def joined_earlier(
    shards: Shards, outputs: Mapping[Path, str], groups: Sequence[TaskGroup]
) -> list[ShardRecord] | None:
    """The records of the same groups, when a run that was killed while it removed its shards had joined them.

    Args:
        outputs: the identity of the corpus at each prefix; another one may have taken its place since.
    """
    try:
        path = shards.folders[0] / _JOINED
        note = require_form(path, read_sealed_json(path, "note of joined shards"), _Joined)
    except UserError:
        return None
    return [form.record() for form in note.records] if note.work == _fingerprint(groups) and are_made(outputs) else None


def are_made(outputs: Mapping[Path, str]) -> bool:
    """Whether all corpora are there, with the identity that is given for each prefix."""
    try:
        return all(is_there(prefix) and read_manifest(prefix).get("identity") == outputs[prefix] for prefix in outputs)
    except UserError:
        return False


def remove(shards: Shards) -> None:
    """Remove the shard folders: first the manifests, so that none names files that are gone, and the note last."""
    for folder in reversed(shards.folders):
        shutil.rmtree(folder / METERS, ignore_errors=True)
        for path in sorted(folder.glob("*"), key=_turn):
            if _OURS.match(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put a file there
            folder.rmdir()


def _turn(path: Path) -> int:
    return 0 if path.name.endswith(".manifest.json") else 2 if path.name == _JOINED else 1


def tidy(shards: Shards) -> None:
    """After a failure: remove what no later run can use."""
    if not any(shards.folders[0].glob("*.task.json")):
        remove(shards)


def _fingerprint(groups: Iterable[TaskGroup]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(group.name for group in groups).encode())


def _bad_places(shards: Shards, group: TaskGroup) -> Iterator[tuple[Task, BadPlace]]:
    with open(shards.bad_rows_path(group), "rb") as file:
        for line in file:
            try:
                bad = _Bad.model_validate_json(line)
                task = group.tasks[bad.task]
            except (ValueError, IndexError) as error:
                path = shards.bad_rows_path(group)
                raise UserError(f"{path}: is damaged; remove {path.parent}, and run the command again") from error
            yield task, BadPlace(bad.row, bad.offset, bad.reason)


def earlier_bad_rows(output: Output) -> str | None:
    """Recognises a list of bad rows by its first line, see `outputs.Earlier`; it belongs to the corpora beside it."""
    if not output.path.exists():
        return None
    try:
        with open(output.path, encoding="utf-8") as file:
            fields = set(json.loads(file.readline()))
    except (ValueError, TypeError):
        fields = set()
    if fields not in ({"file", "row", "reason"}, {"file", "line", "offset", "reason"}):
        raise output.in_the_way(output.path)
    return ""


def _write_bad_rows(shards: Shards, done: Sequence[Done], path: Path) -> None:
    """Places in whole files from those within tasks; without a bad row no file, also none of an earlier run."""
    path.unlink(missing_ok=True)
    if not any(record.bad_rows for _, record in done):
        return
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        name, before = "", 0
        for group, record in done:
            # Of several files all begin in their group; a file that is cut into parts has a group for each.
            before = before if group.tasks[0].file.name == name else 0
            for task, place in _bad_places(shards, group):
                file.write(json.dumps(_entry(task, place, before), ensure_ascii=False) + "\n")
            name, before = group.tasks[0].file.name, before + record.rows


def _entry(task: Task, place: BadPlace, before: int) -> dict[str, Any]:
    number = place.row + before
    if place.offset is None:
        return {"file": task.file.name, "row": number, "reason": place.reason}
    return {"file": task.file.name, "line": number, "offset": place.offset, "reason": place.reason}
