"""The folder of documents that a run of steps leaves: `documents/`, `dropped/` and, last, `manifest.json`.

Shards are made in `OUTPUT.work/FINGERPRINT`, where a later start finds the finished ones; the folder appears when all
are there, at once, and the work folder goes.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.engines.stage import Engine, Record, Stage
from data_tools.reading.bad_rows import too_many
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import files_in_words
from data_tools.reading.text import BadPlace
from data_tools.steps.shards import COLUMNS, DOCUMENTS, LEFT_OUT
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, checksum, read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import Count, Form, Recorded, require_form
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.outputs import RECORD, Earlier, Output, check, claim, recorded_folder

log = logging.getLogger(__name__)

FORMAT = "kaiyuan-documents"
# A row for each input file of a shard, or part of one: the shard, and the row of ids with which it begins.
INPUTS = "inputs.parquet"
_INPUT_COLUMNS = (
    ("dataset", pa.string()),
    ("shard", pa.int64()),
    ("first_row", pa.int64()),
    ("file", pa.string()),
    ("start", pa.int64()),
    ("stop", pa.int64()),
)
FOLDERS = {DOCUMENTS: "documents", LEFT_OUT: "dropped", COLUMNS: "columns"}
_KIND = "a folder of documents"
_LAST_RANK_SECONDS = 60.0
# Folders of stages in a work folder, by their fingerprints.
_OURS = re.compile(r"([a-z]+-)?[0-9a-f]{16}")


@dataclass(frozen=True)
class Workplace:
    """Where one run of a command works until its product is whole.

    Attributes:
        output: the place of the product.
        identity: fingerprint of input and settings.
        manifest: of the product, where an earlier run has finished it; there is nothing left to do.
    """

    output: Output
    identity: str
    manifest: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Of the stages, seen by every process."""
        path = self.output.path
        return path.with_name(f"{path.name}.work") / self.identity[:16]

    @property
    def lock_path(self) -> Path:
        """Shared by the other ranks while they work; the first one takes it alone before it removes the folder."""
        return self.folder / "run.lock"

    def remove(self) -> None:
        """Remove the work folder with what runs of other settings left in it, once no rank looks at it any more."""
        work = self.folder.parent
        if not work.is_dir():
            return
        try:
            with lock(self.lock_path, seconds=_LAST_RANK_SECONDS):
                for path in work.iterdir():
                    if _OURS.fullmatch(path.name):
                        shutil.rmtree(path, ignore_errors=True)
        except UserError:
            log.info(f"{work}: a process still works there; remove it when it has ended")
        with suppress(OSError):  # somebody put a file there
            work.rmdir()


@contextmanager
def workplace(
    path: Path, command: str, identity: str, shards: Sequence[Shard], engine: Engine, *, force: bool = False
) -> Iterator[Workplace]:
    """Claim `path` for the product of a run, see `outputs.claim`. Of several ranks the first one does; all check.

    Args:
        command: "dedup": only its own products are replaced.
        shards: the input, which must not lie in the output.
        force: a product that is there is made again, also of other input or settings.

    Raises:
        UserError: something else lies there, or the place cannot be written.
    """
    output = Output(path, _KIND)
    _refuse_input(output, shards)
    earlier = _earlier(command)
    place = Workplace(output, identity)
    with ExitStack() as stack:
        if engine.is_first:
            stack.enter_context(claim(output, identity, earlier, force=force))
        else:
            check(output, identity, earlier, force)
            stack.enter_context(lock(place.lock_path, shared=True, seconds=None))
        # Nothing else can be there now.
        manifest = read_documents_manifest(path) if (path / RECORD).exists() and not force else None
        if manifest and manifest["identity"] == identity and _are_there(path, manifest["files"]):
            if engine.is_first:
                place.remove()  # what is left of it after a kill
            yield replace(place, manifest=manifest)
        else:
            yield place


def _are_there(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    try:
        require_files(folder, files)
    except UserError:
        return False  # what is lost is made again
    return True


def _refuse_input(output: Output, shards: Sequence[Shard]) -> None:
    place = Path(os.path.realpath(output.path))
    for file in dict.fromkeys(task.file for shard in shards for task in shard.tasks):
        if file.is_local and place in Path(os.path.realpath(file.location)).parents:
            raise UserError(f"{file.name}: is input, and lies in the output {output.path}; name another --output")


def _earlier(command: str) -> Earlier:
    """Recognises a folder that the same command wrote."""

    def earlier(output: Output) -> str | None:
        identity = recorded_folder(FORMAT)(output)
        if identity is not None and (other := read_documents_manifest(output.path).get("command")) != command:
            raise output.in_the_way(output.path, f"was written by kaiyuan-data {other}")
        return identity

    return earlier


def stage_of(place: Workplace, title: str, do: Any, shards: Sequence[Shard]) -> Stage:
    """A stage with one task a shard; its names say dataset and shard."""
    names = [f"{shard.dataset:05d}-{shard.number:06d}" for shard in shards]
    return Stage(title, place.folder / title, do, shards, names, [shard.group.size for shard in shards])


def refuse_bad_rows(shards: Sequence[Shard], records: Sequence[Record], max_bad_rows: int) -> None:
    """Stop when all shards together have more bad rows than are allowed.

    Raises:
        UserError: naming the first one beyond.
    """
    count = 0
    for shard, record in zip(shards, records, strict=True):
        for bad in record["bad"]:
            count += 1
            if count > max_bad_rows:
                place = {"task": 0, **bad}  # in records of earlier versions a shard is one task
                raise too_many(shard.tasks[place.pop("task")], BadPlace(**place), count, max_bad_rows)


def refuse_empty(shards: Sequence[Shard], records: Sequence[Record]) -> None:
    """Stop when no shard has a document: the input is not what it was taken for.

    Raises:
        UserError: naming the first file.
    """
    rows, bad = sum(record["rows"] for record in records), sum(len(record["bad"]) for record in records)
    if rows == bad:
        files = [task.file for shard in shards for task in shard.tasks]
        wrong = f", all of them bad rows ({records[0]['bad'][0]['reason']})" if records[0]["bad"] else ""
        raise UserError(
            f"{files_in_words(files)}: no document in {rows:,} rows{wrong}; name input that holds text in the "
            "field of --json-key"
        )


def publish_documents(
    place: Workplace, stage: Stage, records: Sequence[Record], about: dict[str, Any], extra: Sequence[Path] = ()
) -> dict[str, Any]:
    """Put the shards of a finished stage in their place, with the manifest; return the manifest.

    Args:
        stage: of `ApplySteps`, or of another work that writes the same two files a shard.
        about: goes into the manifest: the command, its settings, reports.
        extra: more files, which go beside the manifest.
    """
    manifest = {
        "format": FORMAT,
        "version": 1,
        "identity": place.identity,
        **about,
        "datasets": _counts(stage.tasks, records),
    }
    with atomic_path(place.output.path, replace_folder=True) as new:
        files = {}
        for shard, name, record in zip(stage.tasks, stage.names, records, strict=True):
            for suffix, digest in record["checksums"].items():
                target = new / FOLDERS[suffix] / shard.name / f"{shard.number:06d}.parquet"
                link(stage.folder / f"{name}{suffix}", target)
                files[str(target.relative_to(new))] = {"bytes": target.stat().st_size, "checksum": digest}
        _write_inputs(new / INPUTS, stage.tasks, records)
        for path in (new / INPUTS, *extra):
            if path.parent != new:
                link(path, new / path.name)
            files[path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
        manifest["files"] = files
        write_sealed_json(new / RECORD, manifest)
    place.remove()
    return manifest


def _write_inputs(path: Path, shards: Sequence[Shard], records: Sequence[Record]) -> None:
    """For each file of each shard, the rows of ids that begin with it: what leads from a document's id to its line."""
    rows = [
        (shard.name, shard.number, first, task.file.name, task.start, task.stop)
        for shard, record in zip(shards, records, strict=True)
        for task, first in zip(shard.tasks, record.get("first_rows", (0,)), strict=True)
    ]
    columns = zip(_INPUT_COLUMNS, zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: pa.array(values, kind) for (name, kind), values in columns}), path)


class _Dataset(Form):
    rows: Count
    documents: Count
    dropped: dict[str, Count]


class _Manifest(Recorded):
    datasets: dict[str, _Dataset]


def is_documents(path: Path) -> bool:
    """Whether a path is a folder that `publish_documents` wrote, by its look."""
    return (path / RECORD).is_file() and (path / FOLDERS[DOCUMENTS]).is_dir()


def read_documents_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of documents.

    Raises:
        UserError: it is none, or damaged.
    """
    manifest = read_sealed_json(folder / RECORD, "manifest of documents")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / RECORD}: is no manifest of documents; name a folder that this program wrote")
    require_form(folder / RECORD, manifest, _Manifest, "copy it again, or make the folder again")
    return manifest


def require_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder of which a file is gone or has another size.

    Raises:
        UserError: naming it.
    """
    for name, about in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            state = "has another size than" if path.is_file() else "is gone, and listed in"
            raise UserError(f"{path}: {state} {RECORD}; copy it again, or make the folder again")


def summary(manifest: dict[str, Any]) -> list[str]:
    """A line a dataset: what stays and what was dropped for which reason."""
    lines = []
    for name, counts in manifest["datasets"].items():
        dropped = "".join(f"; {count:,} {reason}" for reason, count in counts["dropped"].items())
        share = counts["documents"] / max(counts["rows"], 1)
        lines.append(
            f"{name or 'documents'}: {counts['documents']:,} of {counts['rows']:,} stay ({share:.1%}){dropped}"
        )
    return lines


def _counts(shards: Sequence[Shard], records: Sequence[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for shard, record in zip(shards, records, strict=True):
        entry = found.setdefault(shard.name, {"files": {}, "rows": 0, "documents": 0, "dropped": Counter()})
        entry["files"].update(dict.fromkeys(task.file.name for task in shard.tasks))
        entry["rows"] += record["rows"]
        entry["documents"] += record["documents"]
        entry["dropped"].update(record["dropped"])
    for entry in found.values():
        entry["files"] = list(entry["files"])
        entry["dropped"] = dict(sorted(entry["dropped"].items()))
    return found


def link(source: Path, target: Path) -> None:
    """The same file under a second name, so that a kill before the last rename loses nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
