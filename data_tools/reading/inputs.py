"""The files that text comes from: named one by one, by folder, by pattern or by URL, and opened unpacked.

A local file is opened by the system, everything else ("s3://", "http://", "memory://") by fsspec.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

from data_tools.reading.listing import (
    Identity,
    Listing,
    hidden_below,
    identity,
    list_folder,
    list_pattern,
    require_regular,
    state_of,
)
from data_tools.reading.packing import (
    BEGINNING_BYTES,
    PACKINGS,
    UNPACK_ERRORS,
    UNREADABLE,
    advice,
    find_packing,
    refuse_archive,
    unpacked,
)
from data_tools.reading.unicode_marks import refuse_other_encodings
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import require_utf8
from megatron_kaiyuan.redaction import redact

log = logging.getLogger(__name__)

Format = Literal["json", "parquet", "text"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
# Files of a corpus whose suffixes are those of input.
_BESIDE_INDEX = (".meta.parquet", ".manifest.json", ".publishing.json")
_NO_FILES = f"is a folder without files of {', '.join(_FORMATS)}; name the files themselves"
_NO_MATCH = "no file matches; check the pattern"
# What file systems call the thing that changes when a file is written again, the surest first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class InputFile:
    """A file as it was when it was found.

    Attributes:
        name: path or URL as it is shown and recorded, without credentials.
        format: what is inside, after unpacking.
        packing: how it is packed, by its first bytes; "" for not at all.
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

    def identity(self) -> dict[str, Any]:
        """All fields but the location: with another password or signature it is the same file."""
        return {name: value for name, value in asdict(self).items() if name != "location"}

    @property
    def is_local(self) -> bool:
        return not _is_url(self.name)


def find_inputs(words: Sequence[str | Path], *, quiet: bool = False) -> list[InputFile]:
    """The files that `--input` names, in the order given; those of a folder or of a pattern in the order of names.

    Of a folder, with all that is below it, also through links, files whose names say what they hold are taken, and no
    hidden ones; what is left out is printed to stderr, once. A file that is named itself is taken as JSON lines unless
    its name says otherwise. No file is taken twice, whatever its names: within a folder or a pattern it is read once.

    Args:
        quiet: print nothing, because another process does.

    Raises:
        UserError: there is none, one is missing, unreadable or named twice, or one is packed in a way that cannot be
            read.
    """
    found: dict[Identity | str, str] = {}
    files: list[InputFile] = []
    for word in words:
        listing = _list(str(word))
        if listing.left_out and not quiet:
            _print_once(f"--input {word}: {listing}; name a file or folder itself to have it read")
        for name in listing.files:
            files.append(_describe(name))
            first = found.setdefault(_identity(name), name)
            if len(found) < len(files):
                other = "" if first == name else f", the other time as {first}"
                raise UserError(f"{name}: is named twice by --input{other}; name each file once")
    if not files:
        raise UserError("--input: name at least one file with text")
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
    except UNPACK_ERRORS as error:
        raise UserError(f"{file.name}: cannot be read ({error}); {advice(error)}") from error


def unpack(file: InputFile, stored: BinaryIO) -> BinaryIO:
    """The text bytes inside the stored ones, from where these stand; all frames of the file.

    Raises:
        UserError: what is packed is an archive or not in UTF-8. While it is read: see `open_stored`.
    """
    if not file.packing:
        return stored
    text = unpacked(file.packing, stored)
    beginning = text.peek(BEGINNING_BYTES)[:BEGINNING_BYTES]  # type: ignore[attr-defined]
    refuse_archive(file.name, beginning)
    refuse_other_encodings(file.name, beginning, file.format == "text")
    return text


def require_unchanged(file: InputFile) -> None:
    """Refuse what was read from a file that was written to meanwhile.

    Raises:
        UserError: size or time of change is another than when the file was found.
    """
    if file.is_local and _describe(file.location) != file:
        raise UserError(f"{file.name}: was changed while it was read; run the command again when it is finished")


@lru_cache(1024)
def _print_once(line: str) -> None:
    log.info(line)


def _list(word: str) -> Listing:
    if not word:
        raise UserError("--input: a name is empty; give a file, folder, pattern or URL")
    if local := re.match(r"(?:file|local)://(?:localhost(?=/))?(.*)", word, re.IGNORECASE | re.DOTALL):
        path = local[1]
        return _list_local(path if os.path.lexists(path) or not os.path.lexists(unquote(path)) else unquote(path))
    return _list_url(word) if _is_url(word) else _list_local(word)


def _list_local(word: str) -> Listing:
    if os.path.isdir(word):
        # Folders of a hundred thousand files are usual, and each look at a network file system costs.
        looked = cache(_is_documents)

        def is_input(name: str) -> bool:
            return _is_known(name) and not _is_product(word, name, looked)

        return _some(word, list_folder(word, is_input), _NO_FILES)
    if os.path.isfile(word.rstrip("/")):
        return Listing([word.rstrip("/")], [])
    if has_magic(word) and not os.path.lexists(word):
        return _some(word, list_pattern(word), _NO_MATCH)
    return Listing([word], [])


def _list_url(word: str) -> Listing:
    # A web server does not tell a folder from a file: asked for one it would send the whole file.
    if not has_magic(word) and _is_known(word):
        return Listing([word], [])
    system, path = _file_system(word)
    try:
        if has_magic(path):
            matches = system.glob(path, detail=True)
            names = [system.unstrip_protocol(name) for name, about in matches.items() if about["type"] != "directory"]
            return _some(word, Listing(sorted(names), []), _NO_MATCH)
        if system.isdir(path):
            names = sorted(system.unstrip_protocol(name) for name in system.find(path))
            known = [name for name in names if _is_known(name) and not hidden_below(word, name)]
            return _some(word, Listing(known, sorted(set(names) - set(known))), _NO_FILES)
    except (OSError, ValueError) as error:
        raise UserError(f"{word}: cannot be listed ({error}); name the files one by one") from error
    return Listing([word], [])


def _some(word: str, listing: Listing, reason: str) -> Listing:
    if listing.files:
        return listing
    raise UserError(f"{word}: {reason}" + (f" ({listing})" if listing.left_out else ""))


def _is_known(name: str) -> bool:
    return _suffixes(name)[0] in _FORMATS and not _is_ours(name)


def _is_ours(name: str) -> bool:
    """Whether preprocessing wrote this file. A corpus may lie in its own input folder and is not input for it."""
    if name.endswith(".bad_rows.jsonl") or Path(name).parent.name.endswith(".shards"):
        return True
    prefix = next((name.removesuffix(end) for end in _BESIDE_INDEX if name.endswith(end)), None)
    return prefix is not None and os.path.lexists(f"{prefix}.idx")


def _is_product(folder: str, name: str, is_documents: Callable[[Path], bool]) -> bool:
    """Whether a file below `folder` is output of dedup or score, or of a run of theirs that is not finished.

    An output folder that the user names is read: its `documents`, or the subfolder that is named, such as
    `OUTPUT/dropped`. One that lies below a named folder is left out; otherwise the cleaned text would be read as well.
    """
    below = [Path(folder, place) for place in list(Path(name).relative_to(folder).parents)[:-1]]
    if any(place.name.endswith(".work") or is_documents(place) for place in below):
        return True
    return is_documents(Path(folder)) and Path(name).relative_to(folder).parts[0] != "documents"


def _is_documents(folder: Path) -> bool:
    return (folder / "documents").is_dir() and (folder / "manifest.json").is_file()


def _identity(name: str) -> Identity | str:
    if not _is_url(name):
        return identity(state_of(name))
    system, path = _file_system(name)
    return str(system.unstrip_protocol(path))


def _describe(name: str) -> InputFile:
    require_utf8(name)
    kind, suffix = _suffixes(name)
    size, version = _url_state(name) if _is_url(name) else _local_state(name)
    beginning = _beginning(name)
    packing = find_packing(name, suffix, beginning)
    form = _FORMATS.get(kind, "json")
    if form == "parquet" and packing:
        raise UserError(f"{name}: a Parquet file packed once more cannot be read in parts; unpack it")
    if form != "parquet" and not packing:
        refuse_other_encodings(name, beginning, form == "text")
        if form == "json":
            _refuse_array(name, beginning)
    shown = redact(name) if _is_url(name) else name
    return InputFile(shown, form, packing, size, version, name)


def _refuse_array(name: str, beginning: bytes) -> None:
    """Refuse a file that is one JSON array of objects, as other programs call JSON.

    Raises:
        UserError: it is.
    """
    if re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", beginning):
        raise UserError(
            f"{name}: is one JSON array, not JSON lines with an object in each; write each of its entries in a line, "
            "as with: jq -c '.[]' FILE.json > FILE.jsonl"
        )


def _beginning(name: str) -> bytes:
    try:
        with _open_url(name, cache_type="none") if _is_url(name) else open(name, "rb") as stored:
            return bytes(stored.read(BEGINNING_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read ({reason}); check the file and its permissions") from error


def _local_state(name: str) -> tuple[int, str]:
    state = state_of(name)
    require_regular(name, state.st_mode)
    return state.st_size, str(state.st_mtime_ns)


def _url_state(name: str) -> tuple[int, str]:
    system, path = _file_system(name)
    try:
        about = system.info(path)
    except FileNotFoundError as error:
        raise UserError(f"{name}: input not found; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be asked for its size ({error}); check the URL and the connection") from error
    if not isinstance(about.get("size"), int):
        raise UserError(f"{name}: the server does not report its size; download it first")
    return about["size"], next((str(about[field]) for field in _VERSION_FIELDS if about.get(field)), "")


def _suffixes(name: str) -> tuple[str, str]:
    """The suffix that names the format, and the one of the packing, both in small letters."""
    suffixes = ["", *PurePosixPath(name.partition("?")[0] if _is_url(name) else name).suffixes]
    suffixes = [suffix.lower() for suffix in suffixes]
    packing = suffixes.pop() if suffixes[-1] in (*PACKINGS, *UNREADABLE) else ""
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


def _open_url(url: str, **options: str) -> Any:
    system, path = _file_system(url)
    # Some of fsspec's files lack methods of the standard ones.
    return io.BufferedReader(system.open(path, "rb", **options), BEGINNING_BYTES if options else 1 << 20)
