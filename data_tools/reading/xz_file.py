"""The bytes inside a .xz: all streams with zeros between and after them, and an error where one is damaged or cut off.

Python's own file takes a stream whose header is damaged for something that follows the last one, and leaves it out.
"""

from __future__ import annotations

import io
import lzma
from typing import Any, BinaryIO

_STORED_BYTES = 1 << 17


class XzFile(io.RawIOBase):
    """A stream over the stored bytes.

    Raises:
        OSError, lzma.LZMAError: while it is read, the file is damaged or cut off.
    """

    def __init__(self, stored: BinaryIO):
        self._stored = stored
        self._left = b""
        self._stream: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while stream := self._stream or self._next_stream():
            text = stream.decompress(self._input() if stream.needs_input else b"", len(buffer))
            if stream.eof:
                self._left, self._stream = stream.unused_data, None
            if text:
                buffer[: len(text)] = text
                return len(text)
        return 0

    def _next_stream(self) -> lzma.LZMADecompressor | None:
        """Begin the stream after the zeros that may come first; None: the file ends."""
        while not (left := self._left.lstrip(b"\0")):
            self._left = self._stored.read(_STORED_BYTES)
            if not self._left:
                return None
        self._left, self._stream = left, lzma.LZMADecompressor(lzma.FORMAT_XZ)
        return self._stream

    def _input(self) -> bytes:
        found, self._left = self._left or self._stored.read(_STORED_BYTES), b""
        if not found:
            raise OSError("truncated in an xz stream")
        return found
