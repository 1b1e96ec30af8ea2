"""Text that comes in: JSON lines, plain or compressed, in batches whose place in the file is known."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from megatron_kaiyuan.errors import UserError

_BATCH_BYTES = 1 << 19
_PACKING = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_UNKNOWN_PACKING = (".xz", ".lzma", ".zip", ".7z", ".tar", ".tgz")


class LineBatch(NamedTuple):
    """Some whole lines of a file.

    Attributes:
        first: number of the first line, from 1.
        read: bytes of the file on disk (compressed, if it is) that were read so far.
    """

    path: Path
    first: int
    lines: list[bytes]
    read: int


class BadRow(ValueError):
    """A line that cannot become a document; the message is the reason, short enough to count by."""


def check_inputs(paths: Sequence[Path]) -> None:
    """Refuse missing inputs before any work is done.

    Raises:
        UserError: there is none, or one is missing or a folder.
    """
    if not paths:
        raise UserError("--input: name at least one JSON lines file")
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name the JSON lines files in it")
        if not path.exists():
            raise UserError(f"{path}: input not found; check the path")


def line_batches(paths: Sequence[Path]) -> Iterator[LineBatch]:
    """All lines of the files in order, about half a megabyte at a time; .gz, .zst, .bz2 and .lz4 are unpacked.

    Raises:
        UserError: a file cannot be read or unpacked.
    """
    for path in paths:
        first = 1
        try:
            with open(path, "rb") as raw, _unpacked(path, raw) as file:
                while lines := file.readlines(_BATCH_BYTES):
                    yield LineBatch(path, first, lines, raw.tell())
                    first += len(lines)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read near line {first} ({error}); check or copy the file again"
            ) from error


def parse_row(line: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """One JSON object whose `keys` are text.

    Raises:
        BadRow: it is not that.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRow("not JSON in UTF-8") from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    for key in keys:
        if key not in row:
            raise BadRow(f"no field {key!r}")
        if not isinstance(row[key], str):
            raise BadRow(f"field {key!r} is not text")
    return row


def texts(paths: Sequence[Path], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The text and the whole row of each line.

    Raises:
        UserError: a line is bad; the message names it.
    """
    check_inputs(paths)
    for batch in line_batches(paths):
        for number, line in enumerate(batch.lines, batch.first):
            if line.strip():
                try:
                    row = parse_row(line, [key])
                except BadRow as error:
                    raise UserError(f"{batch.path}:{number}: {error}; mend or remove the line") from error
                yield row[key], row


def _unpacked(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix in _UNKNOWN_PACKING:
        raise UserError(f"{path}: {path.suffix} cannot be read; unpack it, or pack it as {', '.join(_PACKING)}")
    if path.suffix not in _PACKING:
        return raw
    # Arrow's streams read all frames of a file and refuse a truncated one; fsspec with zstandard stops in silence.
    return io.BufferedReader(pa.CompressedInputStream(raw, _PACKING[path.suffix]))
