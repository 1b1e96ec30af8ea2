"""Lines of a file in batches whose place is known. A line above a limit is passed over, and never held in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from data_tools.reading.inputs import open_stored, unpack
from data_tools.reading.tasks import Task
from megatron_kaiyuan.errors import UserError

BATCH_BYTES = 1 << 20


@dataclass
class Lines:
    """Lines that follow each other.

    Attributes:
        offset: bytes from the start of the unpacked file to the first one.
        contents: each with its end; b"" where it is too long.
        read: bytes of the file as stored that were read so far.
        too_long: size in bytes of lines above the limit, by their place in `contents`.
    """

    offset: int
    contents: list[bytes]
    read: int = 0
    too_long: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.contents)) + sum(self.too_long.values())

    def placed(self, first: int) -> Iterator[tuple[tuple[int, int], bytes | None]]:
        """Each line with its number and its offset; None for one above the limit.

        Args:
            first: number of the first line.
        """
        offset = self.offset
        for at, line in enumerate(self.contents):
            size = self.too_long.get(at)
            yield (first + at, offset), line if size is None else None
            offset += len(line) if size is None else size


def line_batches(task: Task, most: int) -> Iterator[Lines]:
    """Whole lines that begin in the task.

    Args:
        most: bytes of a line, its end not counted, above which it is passed over; 0 for no limit.

    Raises:
        UserError: the file cannot be read or unpacked, or was cut short meanwhile.
    """
    with open_stored(task.file) as stored:
        text = unpack(task.file, stored)
        packed = bool(task.file.packing)
        offset = 0 if packed else _first_line(stored, task)
        while packed or offset < task.stop:
            lines = _read(text, BATCH_BYTES if packed else min(BATCH_BYTES, task.stop - offset), most)
            if not lines.contents:
                break
            size = lines.size
            lines.offset, lines.read = offset, stored.tell() if packed else offset + size
            yield lines
            offset += size
        if offset < task.stop and not packed:
            raise UserError(f"{task.file.name}: was cut short while it was read; run the command again")


def lines_before(task: Task) -> int:
    """Lines that begin before a task over an unpacked file, for messages about a place in its middle."""
    if task.start == 0:
        return 0
    left, lines = task.start - 1, 1
    with open_stored(task.file) as stored:
        while left and (block := stored.read(min(left, BATCH_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def read_whole(task: Task, most: int) -> bytes | None:
    """All bytes of the unpacked file; None where they are more than `most`, unless that is 0.

    Raises:
        UserError: the file cannot be read or unpacked.
    """
    with open_stored(task.file) as stored:
        content = unpack(task.file, stored).read(most + 1 if most else -1)
    return content if not most or len(content) <= most else None


def _read(text: BinaryIO, size: int, most: int) -> Lines:
    """Read whole lines until `size` bytes are read; the last line may end after them."""
    lines = Lines(0, io.BytesIO(text.read(size)).readlines())
    if not lines.contents:
        return lines
    last = len(lines.contents) - 1
    if not lines.contents[last].endswith(b"\n"):
        start = lines.contents[last]
        # One byte more than the limit, and the end of the line.
        rest = text.readline(max(most + 2 - len(start), 1) if most else -1)
        lines.contents[last] = b"".join([start, rest])
    for at in range(last + 1) if 0 < most < BATCH_BYTES else [last]:
        line = lines.contents[at]
        if most and len(line) - line.endswith(b"\n") > most:
            lines.too_long[at] = len(line) + (0 if line.endswith(b"\n") else _pass_over(text))
            lines.contents[at] = b""
    return lines


def _pass_over(text: BinaryIO) -> int:
    """Go to the next line; return the bytes until there."""
    passed = 0
    while part := text.readline(BATCH_BYTES):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def _first_line(stored: BinaryIO, task: Task) -> int:
    """Go to the first line that begins in the task; a line that began before belongs to an earlier task."""
    if task.start == 0:
        return 0
    at = task.start - 1
    stored.seek(at)
    while at < task.stop - 1:
        block = stored.read(min(BATCH_BYTES, task.stop - 1 - at))
        end = block.find(b"\n")
        if end >= 0:
            stored.seek(at + end + 1)
            return at + end + 1
        if not block:
            break
        at += len(block)
    return task.stop
