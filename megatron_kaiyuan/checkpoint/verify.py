"""Is a checkpoint what was written? Nothing in it is opened before this has been answered.

torch_dist holds no checksums of its own and loads a flipped bit silently, and its metadata are a pickle. So the
manifest has to list every file that megatron-core opens, each is compared with its size and checksum, and a name
that leads out of the folder is refused.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from megatron_kaiyuan.checkpoint.layout import FORMAT, MANIFEST, VERSIONS, step_folder, step_of, steps
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import checksum, read_sealed_json
from megatron_kaiyuan.forms import Count, FileEntry, Form, Share, require_form
from megatron_kaiyuan.outputs import Output, refuse_changed, refuse_unlisted, unlisted

# What megatron-core opens by these names; the shards are named in `.metadata`.
_ALWAYS_OPENED = (".metadata", "common.pt", "metadata.json")
# xxhash and read() release the interpreter's lock; more readers than this only help some network file systems.
_READERS = 4
_HERE = PurePosixPath()

Files = dict[str, dict[str, Any]]


class _Average(Form):
    kind: Literal["equal", "ema", "one_minus_sqrt", "weighted"]
    weights: dict[str, Share]


class _Ema(Form):
    decay: Share


class _Manifest(Form):
    step: Count | None = None
    tokens: Count | None = None
    scheduled: bool = True
    averaged_steps: list[Count] = []
    average: _Average | None = None
    ema: _Ema | None = None
    identity: str = ""


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, its form checked; `files` maps names in the folder to `bytes` and `checksum`.

    Raises:
        UserError: it is missing or damaged, or names a file outside the folder.
    """
    path = folder / MANIFEST
    manifest = read_sealed_json(path, "checkpoint manifest")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: is not a checkpoint's manifest")
    if type(manifest.get("version")) is not int or manifest["version"] not in VERSIONS:
        raise UserError(
            f"{path}: version {excerpt(manifest.get('version'))}, but only those up to {max(VERSIONS)} can be read"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise UserError(f"{path}: damaged, `files` does not list a size and a checksum for each file")
    require_form(path, {name: value for name, value in manifest.items() if name != "files"}, _Manifest, "do not use it")
    if (name := _leading_out(folder, files)) is not None:
        raise UserError(f"{path}: names {excerpt(repr(name))}, which is not inside the checkpoint; do not use it")
    if _names_another_step(folder, manifest):
        raise UserError(
            f"{folder}: its manifest is that of step {manifest['step']}, so this is a copy of it; not used under this "
            f"name: move it away, or rename it to step_{manifest['step']}"
        )
    if missing := [name for name in _ALWAYS_OPENED if name not in files]:
        raise UserError(f"{path}: damaged, does not list {', '.join(missing)}")
    return manifest


def is_misnamed(folder: Path) -> bool:
    """Whether a step's folder is a copy of another step, which the run did not make."""
    try:
        return _names_another_step(folder, read_sealed_json(folder / MANIFEST, "checkpoint manifest"))
    except (UserError, OSError):
        return False


def usable_steps(run_dir: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending, without copies of one under another step's name."""
    return [step for step in steps(run_dir) if not is_misnamed(step_folder(run_dir, step))]


def problems_of(folder: Path, files: Files, names: Iterable[str]) -> dict[str, str]:
    """What is wrong with some files of a checkpoint, by name: what was expected and what was found."""
    names = list(names)
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda name: _problem(folder / name, files[name]), names)
        return {name: problem for name, problem in zip(names, found, strict=True) if problem}


def verify(folder: Path) -> None:
    """Compare every file with the manifest, in this process, and refuse files that it does not list.

    A resume lets such files lie, see `choose.py`: nothing reads them, and a run has to continue at night.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    files = read_manifest(folder)["files"]
    if extra := unlisted(folder, files):
        raise UserError(f"{folder / extra[0]}: is not listed in the checkpoint's manifest; move it away")
    if problems := problems_of(folder, files, files):
        raise UserError(next(iter(problems.values())))


def shares(files: Files, ranks: int) -> list[list[str]]:
    """Return the file names for each rank to read, the bytes spread evenly."""
    names = sorted(files)
    parts: list[list[str]] = [[] for _ in range(ranks)]
    for name, rank in zip(names, spread([files[name]["bytes"] for name in names], ranks), strict=True):
        parts[rank].append(name)
    return parts


def spread(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the rank for each piece of work: the largest first, each to the rank that has least."""
    loads = [(0, rank) for rank in range(ranks)]
    found = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + sizes[index], rank))
        found[index] = rank
    return found


def _problem(path: Path, expected: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path}: damaged, {size} bytes instead of {expected['bytes']}"
        found = checksum(path)
    except FileNotFoundError:
        return f"{path}: missing from the checkpoint, {expected['bytes']} bytes expected"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}), {expected['bytes']} bytes expected"
    if found != expected["checksum"]:
        return f"{path}: damaged, checksum {found} instead of {expected['checksum']}"
    return None


def _names_another_step(folder: Path, manifest: dict[str, Any]) -> bool:
    step = step_of(folder.name)
    return step is not None and isinstance(manifest.get("step", step), int) and manifest.get("step", step) != step


def _is_entry(entry: Any) -> bool:
    try:
        FileEntry.model_validate(entry)
    except ValidationError:
        return False
    return True


def _leading_out(folder: Path, names: Iterable[str]) -> str | None:
    """Return a name that leads out of the folder by `..`, as an absolute path or by a link; None: there is none.

    One listing finds the links: to resolve each name costs a look at each folder above it, for each file.
    """
    links = _links(folder)
    for name in names:
        if "\0" in name or len(name) > 4095:
            return name
        place = PurePosixPath(name)
        if not place.parts or place.is_absolute() or ".." in place.parts:
            return name
        if links and not links.isdisjoint([place, *place.parents]) and not _is_inside(folder, name):
            return name
    return None


def _links(folder: Path, above: PurePosixPath = _HERE) -> set[PurePosixPath]:
    """Return the links in a folder and its folders, as names in it."""
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                found.add(above / entry.name)
            elif entry.is_dir(follow_symlinks=False):
                found |= _links(Path(entry.path), above / entry.name)
    return found


def _is_inside(folder: Path, name: str) -> bool:
    place, whole = (folder / name).resolve(), folder.resolve()
    return place != whole and place.is_relative_to(whole)


def earlier_checkpoint(mark: str) -> Callable[[Output], str | None]:
    """For `outputs.claim`: the identity of what a command wrote as a checkpoint before; None where there is nothing.

    Args:
        mark: the field that its manifests have.
    """

    def identity(output: Output) -> str | None:
        if not output.path.exists() or not any(output.path.iterdir()):
            return None
        try:
            manifest = read_manifest(output.path)
        except UserError:
            raise output.in_the_way(output.path) from None
        if mark not in manifest:
            raise output.in_the_way(output.path)
        refuse_unlisted(output, manifest["files"])
        refuse_changed(output, manifest["files"])
        return str(manifest.get("identity", ""))

    return identity
