"""The bytes inside a .zst: all frames, windows of any length, and an error where the file is cut off.

Arrow's stream refuses windows above 128 MiB, as `zstd --long=31` makes them, and has no setting for that.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

_STORED_BYTES = 1 << 17
# The longest window that the format's own tool can be asked for. A frame takes the memory that it needs, not more.
_LONGEST_WINDOW = 1 << 31


class ZstdFile(io.RawIOBase):
    """A stream over the stored bytes.

    Raises:
        OSError: while it is read, the file is damaged or cut off.
    """

    def __init__(self, stored: BinaryIO):
        # Not needed for other files.
        import zstandard

        self._stored, self._error = stored, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
        self._frame: Any = None
        self._left = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            if not self._fill():
                return 0
        size = min(len(buffer), len(self._text))
        buffer[:size] = self._text[:size]
        self._text = self._text[size:]
        return size

    def _fill(self) -> bool:
        """Unpack a piece; False at the end of the file."""
        stored = self._left or self._stored.read(_STORED_BYTES)
        if not stored:
            if self._frame is not None:
                raise OSError("truncated in a zstd frame")
            return False
        self._left = b""
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        try:
            self._text = memoryview(self._frame.decompress(stored))
        except self._error as error:
            raise OSError(str(error)) from error
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return True
