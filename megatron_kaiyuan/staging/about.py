"""The first member of an archive: what it holds."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from megatron_kaiyuan.errors import UserError

ABOUT = "kaiyuan-environment.json"
_FORMAT = "kaiyuan-environment"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class About:
    """What an archive holds.

    Attributes:
        identity: fingerprint of the environment's files.
        prefix: where the environment was; its programs name this path.
        interpreter: the name of the interpreter's program in `base/bin`; empty: it is not in the archive.
        files: files and links, those in `__pycache__` apart.
    """

    identity: str
    prefix: str
    interpreter: str
    files: int

    def as_json(self) -> dict[str, Any]:
        """With the name of the format."""
        return {"format": _FORMAT, "version": 1, **dataclasses.asdict(self)}


def parse_about(content: bytes, source: Path) -> About:
    """Read what `as_json` gave.

    Raises:
        UserError: it is something else.
    """
    try:
        fields = json.loads(content)
        if fields.pop("format") == _FORMAT and fields.pop("version") == 1:
            about = About(**fields)
            typed = all(type(getattr(about, one.name)).__name__ == one.type for one in dataclasses.fields(about))
            if typed and about.files >= 0:
                return about
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise UserError(f"{source}: is not an archive of launch/stage_env.sh of this version; pack it again")


class _Frame:
    """A zstd frame to read. It raises where the frame ends early; zstandard's own reader just ends there."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._frame = raw, zstandard.ZstdDecompressor().decompressobj()
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        pieces: list[memoryview] = []
        while size > 0:
            if not self._left:
                if self._frame.eof:
                    break
                if not (packed := self._raw.read(1 << 17)):
                    raise zstandard.ZstdError("the frame ends early")
                self._left = memoryview(self._frame.decompress(packed))
            piece, self._left = self._left[:size], self._left[size:]
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


@contextmanager
def opened(file: Path) -> Iterator[tuple[About, tarfile.TarFile]]:
    """What an archive holds, and the archive from its second member on.

    Raises:
        UserError: it is something else, or damaged.
    """
    try:
        with (
            open(file, "rb") as raw,
            tarfile.open(fileobj=cast("BinaryIO", _Frame(raw)), mode="r|") as tar,
        ):
            first = tar.next()
            content = tar.extractfile(first) if first and first.name == ABOUT and first.size < _MOST_BYTES else None
            yield parse_about(content.read() if content else b"", file), tar
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise UserError(f"{file}: is damaged, or not an archive of launch/stage_env.sh; pack it again") from error


def read_about(file: Path) -> About:
    """What an archive holds, from its beginning alone.

    Raises:
        UserError: as of `opened`.
    """
    with opened(file) as (about, _):
        return about
