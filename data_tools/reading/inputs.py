"""The files that text comes from: named one by one, by folder, by pattern or by URL, and opened unpacked.

A local file is opened by the system, everything else ("s3://", "http://", "memory://") by fsspec.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.redaction import redact

Format = Literal["json", "parquet", "text"]

_PACKING = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_UNKNOWN_PACKING = (".xz", ".lzma", ".zip", ".7z", ".tar", ".tgz")
_FORMATS: dict[str, Format] = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
# What file systems call the thing that changes when a file is written again, the surest first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_ABSENT = "input not found; check the path"


@dataclass(frozen=True)
class InputFile:
    """A file as it was when it was found.

    Attributes:
        name: path or URL as it is shown and recorded, without credentials.
        format: what is inside, after unpacking.
        packing: Arrow's name of the compression, "" for none.
        size: bytes as stored.
        version: changes when the file does: the time of the last change in nanoseconds, or a server's tag.
        location: path or URL by which it is opened; it is recorded nowhere.
    """

    name: str
    format: Format
    packing: str
    size: int
    version: str
    location: str = field(repr=False)

    @property
    def is_local(self) -> bool:
        return not _is_url(self.name)


def find_inputs(words: Sequence[str | Path]) -> list[InputFile]:
    """The files that `--input` names, in the order given; those of a folder or of a pattern in the order of names.

    Of a folder, with all that is below it, only files whose names tell what they hold are taken, and no hidden ones.
    A file that is named itself is taken as JSON lines unless its name says otherwise.

    Raises:
        UserError: there is none, one is missing, or one is packed in a way that cannot be read.
    """
    files = [_describe(name) for word in words for name in _names(str(word))]
    if not files:
        raise UserError("--input: name at least one file with text")
    names: set[str] = set()
    for file in files:
        if file.name in names:
            raise UserError(f"{file.name}: is named twice by --input; name each file once")
        names.add(file.name)
    return files


@contextmanager
def open_stored(file: InputFile) -> Iterator[BinaryIO]:
    """The bytes as they are stored.

    Raises:
        UserError: the system or the server refuses, or what is packed is damaged; also while it is read in the `with`.
    """
    try:
        with open(file.location, "rb") if file.is_local else _open_url(file.location) as stored:
            yield stored
    # fsspec's file systems raise ValueError too, as for a web server that cannot give a part of a file.
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file.name}: cannot be read ({error}); check or copy the file again") from error


def unpack(file: InputFile, stored: BinaryIO) -> BinaryIO:
    """The text bytes behind the stored ones; all frames of the file, and an error where it is cut off."""
    if not file.packing:
        return stored
    # Arrow's streams refuse a truncated file; fsspec with zstandard stops in silence.
    return io.BufferedReader(pa.CompressedInputStream(stored, file.packing), 1 << 20)  # type: ignore[type-var]


def require_unchanged(file: InputFile) -> None:
    """Refuse what was read from a file that was written to meanwhile.

    Raises:
        UserError: size or time of change is another than when the file was found.
    """
    if file.is_local and _describe(file.location) != file:
        raise UserError(f"{file.name}: was changed while it was read; run the command again when it is finished")


def _names(word: str) -> list[str]:
    if word.startswith(("file://", "local://")):
        word = word.partition("://")[2]
    return _url_names(word) if _is_url(word) else _local_names(word)


def _local_names(word: str) -> list[str]:
    path = Path(word)
    if path.is_dir():
        return _known(word, [str(found) for found in path.rglob("*") if found.is_file()])
    if has_magic(word) and not path.exists():
        return _matches(word, [found for found in glob(word, recursive=True) if Path(found).is_file()])
    return [word]


def _url_names(word: str) -> list[str]:
    # A web server tells no folder from a file: asked for one it would send the whole file.
    if not has_magic(word) and _suffixes(word)[0] in _FORMATS:
        return [word]
    system, path = _file_system(word)
    try:
        if has_magic(path):
            return _matches(word, [system.unstrip_protocol(name) for name in system.glob(path)])
        if system.isdir(path):
            return _known(word, [system.unstrip_protocol(name) for name in system.find(path)])
    except (OSError, ValueError) as error:
        raise UserError(f"{word}: cannot be listed ({error}); name the files one by one") from error
    return [word]


def _known(folder: str, names: list[str]) -> list[str]:
    start = len(folder.rstrip("/")) + 1
    visible = [name for name in names if not re.search(r"(^|/)[._]", name[start:])]
    if known := sorted(name for name in visible if _suffixes(name)[0] in _FORMATS):
        return known
    raise UserError(f"{folder}: is a folder without files of {', '.join(_FORMATS)}; name the files themselves")


def _matches(pattern: str, names: list[str]) -> list[str]:
    if not names:
        raise UserError(f"{pattern}: no file matches; check the pattern")
    return sorted(names)


def _describe(name: str) -> InputFile:
    kind, packing = _suffixes(name)
    if packing in _UNKNOWN_PACKING:
        raise UserError(f"{name}: {packing} cannot be read; unpack it, or pack it as {', '.join(_PACKING)}")
    size, version = _url_state(name) if _is_url(name) else _local_state(name)
    form = _FORMATS.get(kind, "json")
    if form == "parquet" and packing:
        raise UserError(f"{name}: a Parquet file packed once more cannot be read in parts; unpack it")
    shown = redact(name) if _is_url(name) else name
    return InputFile(shown, form, _PACKING.get(packing, ""), size, version, name)


def _local_state(name: str) -> tuple[int, str]:
    try:
        state = Path(name).stat()
    except FileNotFoundError as error:
        raise UserError(f"{name}: {_ABSENT}") from error
    return state.st_size, str(state.st_mtime_ns)


def _url_state(name: str) -> tuple[int, str]:
    system, path = _file_system(name)
    try:
        about = system.info(path)
    except FileNotFoundError as error:
        raise UserError(f"{name}: {_ABSENT}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be asked for its size ({error}); check the URL and the connection") from error
    if not isinstance(about.get("size"), int):
        raise UserError(f"{name}: the server does not tell its size; download it first")
    return about["size"], next((str(about[field]) for field in _VERSION_FIELDS if about.get(field)), "")


def _suffixes(name: str) -> tuple[str, str]:
    """The suffix that tells the format, and the one of the packing."""
    suffixes = ["", *PurePosixPath(name.partition("?")[0] if _is_url(name) else name).suffixes]
    packing = suffixes.pop() if suffixes[-1] in (*_PACKING, *_UNKNOWN_PACKING) else ""
    return suffixes[-1], packing


def _is_url(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def _file_system(url: str) -> tuple[Any, str]:
    # Not needed for local files, and slow to import.
    import fsspec  # type: ignore[import-untyped]

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: cannot be opened ({error}); install what fsspec needs for it") from error


def _open_url(url: str) -> Any:
    system, path = _file_system(url)
    # Some of fsspec's files lack methods of the standard ones.
    return io.BufferedReader(system.open(path, "rb"), 1 << 20)
