"""Plain arrays on disk, which the stages of deduplication leave for each other; little-endian, without a header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_kaiyuan.errors import UserError

PAIR: np.dtype[Any] = np.dtype(("<u8", 2))
CHUNK = 1 << 20


def read_array(path: str | os.PathLike[str], kind: DTypeLike, offset: int = 0, count: int = -1) -> NDArray[Any]:
    """Numbers of a file, from a byte on.

    Raises:
        UserError: the file is shorter.
    """
    found = np.fromfile(path, kind, count, offset=offset)
    if 0 <= count != len(found):
        raise UserError(f"{path}: is damaged, it ends too early; remove it, and run the command again")
    return found


def map_array(path: str | os.PathLike[str], kind: DTypeLike) -> NDArray[Any]:
    """A whole file without reading it."""
    if not os.path.getsize(path):
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")


def chunks(path: str | os.PathLike[str], kind: DTypeLike, size: int = CHUNK) -> Iterator[NDArray[Any]]:
    """A file piece by piece, `size` entries at once."""
    step = size * np.dtype(kind).itemsize
    for start in range(0, os.path.getsize(path), step):
        yield np.fromfile(path, kind, size, offset=start)


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write a whole file."""
    with open(path, "wb") as file:
        values.tofile(file)


def write_bits(path: Path, flags: NDArray[np.bool_]) -> None:
    """Write a bit a flag: that of number i is bit i & 7 of byte i >> 3."""
    write_array(path, np.packbits(flags, bitorder="little"))


def read_bits(path: str | os.PathLike[str], first: int, last: int) -> NDArray[np.bool_]:
    """The flags of the numbers [first, last)."""
    if first == last:
        return np.zeros(0, bool)
    packed = read_array(path, np.uint8, first // 8, (last + 7) // 8 - first // 8)
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first].astype(bool)
