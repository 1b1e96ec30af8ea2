"""Byte order marks: that of UTF-8 is never text, and files in another encoding are refused."""

from __future__ import annotations

import codecs

from megatron_kaiyuan.errors import UserError

_MARK = codecs.BOM_UTF8
# That of UTF-32 begins as the one of UTF-16 does.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Without a mark, text of UTF-16 in Latin letters has a zero in every second byte.
_TELLING_BYTES = 32


def without_mark(line: bytes) -> bytes:
    """A line without the mark at its start: files that were joined by `cat` have one at the start of each."""
    return line.removeprefix(_MARK)


def without_marks(content: bytes) -> bytes:
    """As `without_mark`, of all lines of a text."""
    return content.removeprefix(_MARK).replace(b"\n" + _MARK, b"\n")


def refuse_other_encodings(name: str, beginning: bytes, plain: bool) -> None:
    """Refuse a file that is not in UTF-8, as far as its first bytes show it.

    Args:
        plain: it is plain text, in which zeros would become text; in JSON lines they make bad rows.

    Raises:
        UserError: it begins as UTF-16 or UTF-32 does.
    """
    kind = next((kind for mark, kind in _OTHER_MARKS.items() if beginning.startswith(mark)), None)
    start = beginning[:_TELLING_BYTES]
    if kind is None and plain and len(start) >= 4 and any(start) and not (any(start[::2]) and any(start[1::2])):
        kind = "UTF-16 or UTF-32"
    if kind:
        raise UserError(f"{name}: is in {kind}; convert it to UTF-8, as with `iconv -f {kind[:6]} -t UTF-8`")
