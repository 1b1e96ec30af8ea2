"""What a run keeps for later ones: the signatures of all its documents, and where their texts are.

Not the shingles, which would be larger than the texts (8 bytes a word). So the texts are read again, where they lie,
for the candidates among them: a file that is gone or changed by then is an error. All documents are in the index, also
those that were removed: whoever is a duplicate of one of these is a duplicate of the one that stayed for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from data_tools.dedup.scopes import SignedShard
from data_tools.dedup.signing import SUFFIXES, Sign
from data_tools.engines.stage import Engine
from data_tools.reading.inputs import InputFile
from data_tools.reading.shard import Shard
from data_tools.reading.tasks import Settings, Task, TaskGroup
from data_tools.steps.folder import link
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import atomic_path, read_sealed_json
from megatron_kaiyuan.forms import Count, FileName, Form, PathText, Recorded, require_form
from megatron_kaiyuan.outputs import RECORD, Output, check, claim, recorded_folder, write_record

log = logging.getLogger(__name__)

FORMAT = "kaiyuan-dedup-index"
_COUNTS = ("documents", "signed", "hashed")
_READING = ("json_keys", "text_column", "text_documents", "max_characters")


class _InputFile(Form):
    model_config = ConfigDict(extra="forbid")
    name: PathText
    format: Literal["json", "parquet", "text"]
    packing: str
    size: Count
    version: str


class _Task(Form):
    model_config = ConfigDict(extra="forbid")
    start: Count
    stop: Count
    name: FileName


class _Part(Form):
    model_config = ConfigDict(extra="forbid")
    file: _InputFile
    task: _Task


class _Shard(Form):
    dataset: Annotated[Count, Field(lt=1 << 16)]
    number: Annotated[Count, Field(lt=1 << 20)]
    name: str
    file: _InputFile
    task: _Task
    # The other files of a shard of several small ones.
    more: list[_Part] = []
    documents: Count
    signed: Count
    hashed: Count


class _Reading(Form):
    model_config = ConfigDict(extra="forbid")
    json_keys: list[str]
    text_column: str | None
    text_documents: str
    max_characters: Count


class _Manifest(Recorded):
    recipe: Annotated[list[Any], Field(min_length=6, max_length=6)]
    reading: _Reading
    shards: list[_Shard]


@contextmanager
def claim_index(folder: Path | None, identity: str, engine: Engine, force: bool) -> Iterator[None]:
    """Hold the place of `--index` while the block writes it.

    Raises:
        UserError: something else lies there, or the place cannot be written.
    """
    if folder is None:
        yield
        return
    output = Output(folder, "an index of deduplication", "--index")
    earlier = recorded_folder(FORMAT)
    if not engine.is_first:
        check(output, identity, earlier, force)
    with claim(output, identity, earlier, force=force) if engine.is_first else nullcontext():
        yield


def is_there(folder: Path, identity: str) -> bool:
    """Whether the index of this run is finished; `claim_index` has looked at what is there."""
    return (folder / RECORD).exists() and _manifest(folder)["identity"] == identity


def publish(folder: Path, identity: str, sign: Sign, shards: Sequence[SignedShard]) -> None:
    """Write the index of signed shards."""
    with atomic_path(folder, replace_folder=True) as new:
        new.mkdir()
        for signed in shards:
            for suffix in SUFFIXES:
                link(Path(f"{signed.base}{suffix}"), new / f"{_name(signed)}{suffix}")
        rows = [_row(signed) for signed in shards]
        write_record(new, FORMAT, identity, recipe=sign.identity(), reading=_reading(sign.settings), shards=rows)


def open_indexes(folders: Sequence[Path], sign: Sign) -> tuple[list[SignedShard], list[str]]:
    """The shards of the indexes of earlier runs, in the order given, and the seals of these.

    Raises:
        UserError: one is no index, is damaged, or was made by another recipe.
    """
    shards: list[SignedShard] = []
    seals: list[str] = []
    for folder in folders:
        manifest = _manifest(folder)
        _require_same_recipe(folder, manifest, sign)
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise UserError(f"{path}: is missing or damaged; restore it, or make the index again")
        if manifest["seal"] in seals:
            raise UserError(f"--against {folder}: is named twice, or is a copy of another one; name each index once")
        seals.append(manifest["seal"])
        settings = Settings(Path(), **{**manifest["reading"], "json_keys": tuple(manifest["reading"]["json_keys"])})
        shards += [_signed(folder, settings, row) for row in manifest["shards"]]
    return shards, seals


def warn_of_other_names(earlier: Sequence[SignedShard], names: Sequence[str]) -> None:
    """Tell which indexes nothing is compared with, as datasets are compared with those of their names only.

    Args:
        names: of this run's datasets.
    """
    by_index: dict[str, set[str]] = {}
    for signed in earlier:
        by_index.setdefault(signed.index, set()).add(signed.shard.name)
    for folder, there in by_index.items():
        if there.isdisjoint(names):
            log.warning(
                f"--against {folder}: has {_listed(sorted(there))}, and this run {_listed(names)}; nothing is "
                "compared with this index: use the same names, or give --across"
            )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"the dataset {name}" if name else "a dataset without a name" for name in names)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_sealed_json(folder / RECORD, "index of deduplication")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder}: is no index of deduplication; name a folder that dedup --index wrote")
    require_form(folder / RECORD, manifest, _Manifest, "copy it again, or make the index again")
    return manifest


def _require_same_recipe(folder: Path, manifest: dict[str, Any], sign: Sign) -> None:
    # The score is of no account: what an index holds stays anyway.
    def compared(identity: Sequence[Any]) -> list[Any]:
        version, recipe_version, recipe, _, exact_only, _ = identity
        return [version, recipe_version, None if exact_only or not isinstance(recipe, dict) else recipe, exact_only]

    there, here = compared(manifest["recipe"]), compared(sign.identity())
    if there[:2] != here[:2]:
        raise UserError(f"{folder}: was made by another version of this program; make the index again")
    if there[3] != here[3]:
        raise UserError(f"{folder}: was made {'with' if there[3] else 'without'} --exact-only; use the same here")
    theirs = there[2] or {}
    differing = [name for name in here[2] or () if theirs.get(name) != here[2][name]]
    if differing:
        name = differing[0]
        was = excerpt(theirs.get(name))
        raise UserError(f"{folder}: was made with --{name} {was}, not {here[2][name]}; use the same")


def _reading(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name in _READING}


def _name(signed: SignedShard) -> str:
    return f"{signed.shard.dataset:05d}-{signed.shard.number:06d}"


def _row(signed: SignedShard) -> dict[str, Any]:
    shard = signed.shard
    place = {"dataset": shard.dataset, "number": shard.number, "name": shard.name}
    first, *more = map(_part, shard.tasks)
    return {**place, **first, "more": more, **{count: getattr(signed, count) for count in _COUNTS}}


def _part(task: Task) -> dict[str, Any]:
    file = task.file
    # Another run may be started elsewhere.
    name = os.path.abspath(file.location) if file.is_local else file.name
    about = {**file.identity(), "name": name}
    return {"file": about, "task": {"start": task.start, "stop": task.stop, "name": task.name}}


def _signed(folder: Path, settings: Settings, row: dict[str, Any]) -> SignedShard:
    tasks = [
        Task(file=InputFile(**part["file"], location=part["file"]["name"]), **part["task"])
        for part in (row, *row.get("more", ()))
    ]
    shard = Shard(row["dataset"], row["number"], row["name"], TaskGroup.of(tasks))
    base = str(folder / f"{shard.dataset:05d}-{shard.number:06d}")
    return SignedShard(shard, settings, base, row["documents"], row["signed"], row["hashed"], str(folder))
