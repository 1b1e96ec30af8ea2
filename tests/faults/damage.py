"""What disks do to files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

_PAGE = 4096


def truncate(path: Path, drawn: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: drawn.randrange(len(content))])


def flip(path: Path, drawn: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    path.write_bytes(content)


def remove(path: Path, drawn: random.Random) -> None:
    path.unlink()


def zero_page(path: Path, drawn: random.Random) -> None:
    """One page that is not zero already."""
    content = bytearray(path.read_bytes())
    starts = [start for start in range(0, len(content), _PAGE) if any(content[start : start + _PAGE])]
    start = drawn.choice(starts)
    length = len(content[start : start + _PAGE])
    content[start : start + length] = bytes(length)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "removed": remove,
    "zeroed page": zero_page,
}
