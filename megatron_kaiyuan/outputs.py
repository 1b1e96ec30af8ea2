"""The one rule for every command that writes: only where nothing is, or over what it made itself from the same input.

What it made is proven by a record with the fingerprint of what it was made from (its identity): the manifest of an
artefact, a line in a page. A product of other input is replaced only with --force, and what no record proves never.
The place is looked at before the work begins, and held by a lock until it ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, read_sealed_json, remove_leftovers, require_utf8, settle, write_sealed_json
from megatron_kaiyuan.forms import Recorded, require_form
from megatron_kaiyuan.locks import lock

RECORD = "manifest.json"
# As a path, which holds no two slashes one after another.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)")
_AWAY = "move it away, or name another place"
# What network file systems and desktops add by themselves.
_NOBODYS = (".nfs", ".DS_Store")


@dataclass(frozen=True)
class Output:
    """A place that a command is about to write.

    Attributes:
        path: the file, the folder, or the prefix of several files.
        what: of what kind the product is, with its article: "an exported model".
        option: how the user names the place: "--output".
        kind: "file", "folder" or "prefix".
        files: all that the product consists of, where that is more than `path`.
    """

    path: Path
    what: str
    option: str = "--output"
    kind: Literal["file", "folder", "prefix"] = "folder"
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        # What a link leads to is written, as by any other program; the link stays.
        if self.kind != "prefix" and self.path.is_symlink():
            object.__setattr__(self, "path", Path(os.path.realpath(self.path)))

    def in_the_way(self, path: Path, why: str = "") -> UserError:
        """The refusal of a place where something lies that the command did not make."""
        if not why:
            why = f"exists and is not {self.what}" if path == self.path else f"is not part of {self.what}"
        return UserError(
            f"{path}: {why}; name another {self.option}, or move it away: nothing is replaced that this command did "
            "not make"
        )


# What is at a place: None for nothing, else the identity of the earlier product ("" when it recorded none).
Earlier = Callable[[Output], str | None]


def identity_of(*parts: Any) -> str:
    """The fingerprint of what a product is made from: values that JSON can hold, and paths."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


def files_identity(paths: Iterable[Path]) -> list[list[Any]]:
    """Name, size and time of change of files, or of all files of folders, for `identity_of`.

    Raises:
        OSError: a file cannot be looked at.
    """
    found = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                state = file.stat()
                found.append([str(file.resolve()), state.st_size, state.st_mtime_ns])
    return found


@contextmanager
def claim(
    output: Output, identity: str, earlier: Earlier, *, force: bool = False, needed_bytes: int = 0
) -> Iterator[None]:
    """Hold a place while the block makes the product, or refuse it before any work is done.

    Args:
        identity: fingerprint of what the product is made from (`identity_of`).
        earlier: recognises an earlier product of the same command; raises `output.in_the_way` for anything else.
        force: an earlier product of another identity may be replaced.
        needed_bytes: room that the product takes.

    Raises:
        UserError: something else lies there, or the place cannot be written.
    """
    check_place(output, needed_bytes)  # before the lock, which makes the folder it lies in
    # Of several files the first gives the lock its name: places that share it are one to the lock.
    first = (output.files or (output.path,))[0]
    with lock(first.with_name(f".{first.name}.lock"), keep=False) as held:
        settle(journal_of(output.path), output.path)
        if held:
            for path in (*(output.files or (output.path,)), journal_of(output.path)):
                remove_leftovers(path)
        check(output, identity, earlier, force)
        yield


def check(output: Output, identity: str, earlier: Earlier, force: bool = False, needed_bytes: int = 0) -> None:
    """The refusals of `claim` alone: for a command that reads for long before it writes."""
    check_place(output, needed_bytes)
    found = earlier(output)
    if found is not None and found != identity and not force:
        raise UserError(
            f"{output.path}: holds {output.what} already, made from something else (other input or settings; files "
            f"that were touched or copied count as other); name another {output.option}, or replace it with --force"
        )
    if found is not None:
        _refuse_protected(output)


def _refuse_protected(output: Output) -> None:
    """Refuse to replace a product of which something is write-protected, immutable or mounted.

    Raises:
        UserError: naming it.
    """
    for root in output.files or (output.path,):
        for path in (root, *root.rglob("*")):
            if path.exists() and not path.is_symlink() and (os.path.ismount(path) or not _writable(path)):
                raise UserError(
                    f"{path}: is write-protected or mounted there, so {output.what} cannot be replaced; name another "
                    f"{output.option}, or make it removable"
                )


def _writable(path: Path, mode: int = os.W_OK) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def check_place(output: Output, needed_bytes: int = 0) -> None:
    """Whether the place can be written at all: its kind, the permission, the room.

    Raises:
        UserError: it cannot.
    """
    path = output.path
    require_name(path, output.option)
    if output.kind == "file" and path.is_dir():
        raise UserError(f"{path}: is a folder, but {output.option} names the file to write; name a file in it")
    if output.kind == "folder" and path.exists() and not path.is_dir():
        raise output.in_the_way(path)
    if output.kind == "folder" and os.path.ismount(path):
        raise UserError(f"{path}: something is mounted there, so it cannot be replaced; name a folder in it")
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise UserError(f"{parent}: is not a folder, so {path} cannot be written; name another {output.option}")
    for folder in (parent, path) if path.is_dir() else (parent,):
        if not _writable(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{folder}: cannot be written to (permission, or a read-only disk); name another {output.option}"
            )
    try:
        # Without a name, where the file system can: no other process sees it.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: no file can be made in {parent} ({error.strerror}); name another {output.option}"
        ) from error
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise UserError(
            f"{path}: needs {needed_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free there; make room, or name "
            f"another {output.option}"
        )


def require_name(path: Path, option: str) -> None:
    """Refuse `.`, `..` and `/`, beside which no name can be made, URLs, and names that no record can hold.

    Raises:
        UserError: naming the option.
    """
    if path.name in ("", ".."):
        raise UserError(f"{option} {path}: names no file or folder of its own; name one, as {path / 'new'}")
    if _URL.match(str(path)):
        raise UserError(f"{option} {path}: is a URL, and only mounted file systems are written to; name a path")
    require_utf8(path)


def journal_of(path: Path) -> Path:
    """The journal of `files.publish` for a product of several files."""
    return path.with_name(f"{path.name}.publishing.json")


def write_record(folder: Path, format_name: str, identity: str, **about: Any) -> None:
    """Seal a folder: what it is, what it was made from, and size and checksum of each file; its last file."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "checksum": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_sealed_json(
        folder / RECORD, {"format": format_name, "version": 1, "identity": identity, **about, "files": files}
    )


def recorded_folder(format_name: str) -> Earlier:
    """Recognise a folder that `write_record` sealed, as long as nothing was added to it or edited in it."""

    def earlier(output: Output) -> str | None:
        folder = output.path
        if not folder.exists() or not any(folder.iterdir()):
            return None
        try:
            record = read_sealed_json(folder / RECORD, "manifest")
        except UserError:
            record = {}
        if record.get("format") != format_name:
            raise output.in_the_way(folder)
        recorded = require_form(folder / RECORD, record, Recorded, _AWAY)
        refuse_unlisted(output, recorded.files)
        refuse_changed(output, record["files"])
        return recorded.identity

    return earlier


def marked_json(format_name: str) -> Earlier:
    """Recognises a JSON file whose fields `format` and `identity` say what it is."""

    def earlier(output: Output) -> str | None:
        if not output.path.exists():
            return None
        try:
            content = json.loads(output.path.read_bytes())
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("format") != format_name:
            raise output.in_the_way(output.path)
        return str(content.get("identity", ""))

    return earlier


def refuse_unlisted(output: Output, files: Iterable[str]) -> None:
    """Refuse a folder that holds more than its manifest lists.

    Raises:
        UserError: naming the first such file.
    """
    if extra := unlisted(output.path, files):
        raise output.in_the_way(output.path / extra[0])


def refuse_changed(output: Output, files: dict[str, dict[str, Any]]) -> None:
    """Refuse a folder of which a file was changed: by hand, by another program, or by a disk.

    Raises:
        UserError: naming the first such file.
    """
    for name, entry in files.items():
        path = output.path / name
        if path.is_file() and (path.stat().st_size != entry["bytes"] or checksum(path) != entry["checksum"]):
            raise output.in_the_way(path, "was changed after it was written")


def unlisted(folder: Path, files: Iterable[str]) -> list[str]:
    """Names below an artefact's folder that its manifest does not list, the manifest itself apart."""
    known = {RECORD, *files}
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [name for path in found if (name := str(path.relative_to(folder))) not in known and not _is_nobodys(path)]


def _is_nobodys(path: Path) -> bool:
    return path.name.startswith(_NOBODYS)
