"""How a file is packed: its first bytes decide, never its name; and the bytes that are inside.

Names lie: servers and scripts unpack a file and keep its name, or pack one and do not change it.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from typing import BinaryIO

import pyarrow as pa

from data_tools.reading.xz_file import XzFile
from data_tools.reading.zstd_file import ZstdFile
from megatron_kaiyuan.errors import UserError, system_advice

# By suffix, Arrow's name where Arrow has one.
PACKINGS = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".bzip2": "bz2",
    ".lz4": "lz4",
    ".xz": "xz",
}
UNREADABLE = (".lzma", ".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".br", ".snappy", ".sz", ".z")
BEGINNING_BYTES = 512
UNPACK_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)

_MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    # With the mark of the first block, or of an empty file's end: "BZh" alone may begin a text.
    "bz2": tuple(b"BZh%d" % size + mark for size in range(1, 10) for mark in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")),
    "lz4": (b"\x04\x22\x4d\x18",),
    "xz": (b"\xfd7zXZ\x00",),
}
_UNREADABLE_MAGIC = {
    "zip": b"PK\x03\x04",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "rar": b"Rar!\x1a\x07",
    "compress (.Z)": b"\x1f\x9d",
    "lzma": b"\x5d\x00\x00",
    "snappy": b"\xff\x06\x00\x00sNaPpY",
    "the old form of lz4": b"\x02\x21\x4c\x18",
}
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257
# Frames of both formats that hold no data; only the name shows which one follows.
_SKIPPED_FRAMES = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
_UNPACK_IT = f"unpack it, or pack it as {', '.join(PACKINGS)}"


def find_packing(name: str, suffix: str, beginning: bytes) -> str:
    """The packing of a file with that first bytes, "" for none.

    Args:
        suffix: what the name ends with, if packed files are named so; it counts only where the bytes do not decide.

    Raises:
        UserError: it is packed in a way that cannot be read.
    """
    if suffix in UNREADABLE:
        raise UserError(f"{name}: {suffix} cannot be read; {_UNPACK_IT}")
    for packing, magics in _MAGIC.items():
        if beginning.startswith(magics):
            return packing
    if beginning.startswith(_SKIPPED_FRAMES):
        return "lz4" if suffix == ".lz4" else "zstd"
    refuse_archive(name, beginning)
    promised = PACKINGS.get(suffix, "")
    # A file that was cut off within its first bytes is damaged, and no text.
    cut_off = beginning and any(magic.startswith(beginning) for magic in _MAGIC.get(promised, ()))
    return promised if cut_off else ""


def refuse_archive(name: str, beginning: bytes) -> None:
    """Refuse what begins as an archive does, or as files of a packing that cannot be read.

    Raises:
        UserError: it does.
    """
    kind = next((kind for kind, magic in _UNREADABLE_MAGIC.items() if beginning.startswith(magic)), None)
    if kind is None and beginning[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        kind = "tar"
    if kind:
        raise UserError(f"{name}: is packed as {kind}, which cannot be read; {_UNPACK_IT}")


def unpacked(packing: str, stored: BinaryIO) -> BinaryIO:
    """The bytes inside the stored ones; all frames of the file, and an error where it is cut off or damaged."""
    if not packing:
        return stored
    # Zeros after the last frame, as tapes and block devices leave them, are padding to Python and damage to Arrow.
    if packing == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=stored), 1 << 20)  # type: ignore[type-var]
    if packing == "xz":
        return io.BufferedReader(XzFile(stored), 1 << 20)
    if packing == "zstd":
        return io.BufferedReader(ZstdFile(stored), 1 << 20)
    # Arrow's streams refuse a truncated file.
    return io.BufferedReader(pa.CompressedInputStream(stored, packing), 1 << 20)  # type: ignore[type-var]


def advice(error: BaseException) -> str:
    """What to do about a file whose bytes could not be read or unpacked."""
    # A file that Arrow cannot read, as one with a compression it does not know, is not damaged.
    if isinstance(error, pa.ArrowNotImplementedError) or "deeply nested" in str(error):
        return "write it in another way, or drop a column"
    again = "check or copy the file again"
    return system_advice(error, again) if isinstance(error, OSError) else again
