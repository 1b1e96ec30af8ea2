"""Rows that come in: JSON lines and plain text, in batches whose place in the file is known."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import orjson

from data_tools.reading.inputs import open_stored, unpack
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.unicode_marks import without_mark, without_marks
from megatron_kaiyuan.errors import UserError

BATCH_BYTES = 1 << 20
# Lengths in the index and sizes in the metadata are 32-bit.
_LONGEST_TEXT = (1 << 31) - 1
_BLOCK_BYTES = 1 << 20


class BadRow(ValueError):
    """A row that cannot become a document; the message is the reason, short enough to count by."""


class LeftOut(ValueError):
    """A row that is sound but was not asked for; the message is the reason."""


class BadPlace(NamedTuple):
    """Where a bad row is.

    Attributes:
        row: number of the line or of the Parquet row, from 1, within the task.
        offset: bytes from the start of the unpacked file to the line; None for a Parquet row.
    """

    row: int
    offset: int | None
    reason: str


@dataclass
class Rows:
    """A batch of sound rows by column, and what became of the others.

    Attributes:
        texts, text_bytes: for each json key, the text of each row and its size in UTF-8.
        scores: for each name, a number of each row, NaN for a missing score.
        meta: for each name, a value of each row.
        places: of each row, its number in the task and the offset of its line, as in `BadPlace`.
        left_out: rows that are neither here nor bad, by reason.
        count: lines or Parquet rows that were read, whatever became of them.
        read: bytes of the file as stored that were read so far.
    """

    texts: dict[str, list[str]]
    text_bytes: dict[str, list[int]]
    scores: dict[str, list[float]]
    meta: dict[str, list[str | None]]
    places: list[tuple[int, int | None]] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    bad: list[BadPlace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    count: int = 0
    read: int = 0

    @classmethod
    def empty(cls, settings: Settings) -> Rows:
        return cls(
            {key: [] for key in settings.json_keys},
            {key: [] for key in settings.json_keys},
            {key: [] for key in settings.score_keys},
            {key: [] for key in settings.meta_keys},
        )

    def add(self, row: dict[str, Any], settings: Settings, place: tuple[int, int | None]) -> None:
        """Take a row, or note why not."""
        self.count += 1
        try:
            sizes = check_row(row, settings)
        except BadRow as error:
            self.bad.append(BadPlace(*place, str(error)))
        except LeftOut as error:
            self.left_out[str(error)] += 1
        else:
            for key, size in sizes.items():
                self.texts[key].append(row[key])
                self.text_bytes[key].append(size)
            for key, scores in self.scores.items():
                scores.append(math.nan if is_missing(row.get(key)) else float(row[key]))
            for key, values in self.meta.items():
                values.append(as_text(row.get(key)))
            self.places.append(place)
            self.domains.append(_label(row, "domain"))
            self.sources.append(_label(row, "source"))

    def add_bad(self, place: tuple[int, int | None], reason: str) -> None:
        self.count += 1
        self.bad.append(BadPlace(*place, reason))


def line_rows(task: Task, settings: Settings) -> Iterator[Rows]:
    """The rows of a task over JSON lines or plain text.

    Raises:
        UserError: the file cannot be read or unpacked.
    """
    if task.file.format == "text" and settings.text_documents == "file":
        yield from _whole_text(task, settings)
        return
    add = _add_text if task.file.format == "text" else _add_json
    first = 1
    for offset, lines, read in _line_batches(task):
        rows = Rows.empty(settings)
        rows.read = read
        for number, line in enumerate(lines, first):
            row = without_mark(line)
            # Blank lines are common at the end of a file and are not rows.
            if _is_blank(row):
                rows.count += 1
            else:
                add(rows, row, settings, (number, offset))
            offset += len(line)
        first += len(lines)
        yield rows


@dataclass
class JsonRows:
    """A batch of rows with all their fields, and the lines that hold none.

    Attributes:
        rows: place and fields of each; of plain text, the one field that `Settings.json_keys` names.
        count: lines that were read, blank ones too.
    """

    rows: list[tuple[tuple[int, int | None], dict[str, Any]]] = field(default_factory=list)
    bad: list[BadPlace] = field(default_factory=list)
    count: int = 0


def json_rows(task: Task, settings: Settings) -> Iterator[JsonRows]:
    """The rows of a task over JSON lines or plain text, with all their fields. At least one batch comes.

    Raises:
        UserError: the file cannot be read or unpacked.
    """
    yield JsonRows()
    is_text = task.file.format == "text"
    if is_text and settings.text_documents == "file":
        with open_stored(task.file) as stored:
            content = unpack(task.file, stored).read()
        batch = JsonRows(count=1)
        _take(batch, without_marks(content), settings, (1, 0), is_text)
        yield batch
        return
    first = 1
    for offset, lines, _ in _line_batches(task):
        batch = JsonRows(count=len(lines))
        for number, line in enumerate(lines, first):
            row = without_mark(line)
            if not _is_blank(row):
                _take(batch, row, settings, (number, offset), is_text)
            offset += len(line)
        first += len(lines)
        yield batch


def _take(batch: JsonRows, line: bytes, settings: Settings, place: tuple[int, int | None], is_text: bool) -> None:
    try:
        row = {settings.json_keys[0]: decode_text(line, settings)} if is_text else parse_row(line)
    except BadRow as error:
        batch.bad.append(BadPlace(*place, str(error)))
    else:
        batch.rows.append((place, row))


def decode_text(line: bytes, settings: Settings) -> str:
    """A document of plain text.

    Raises:
        BadRow: it is not UTF-8.
    """
    if settings.text_documents == "line":
        line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadRow("not text in UTF-8") from None


def parse_row(line: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        BadRow: it is not that.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _parse_leniently(line)
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    return row


def lines_before(task: Task) -> int:
    """Lines that begin before a task over an unpacked file, for messages about a place in its middle."""
    if task.start == 0:
        return 0
    left, lines = task.start - 1, 1
    with open_stored(task.file) as stored:
        while left and (block := stored.read(min(left, _BLOCK_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def as_text(value: Any) -> str | None:
    """A metadata value as text: what is no text becomes JSON, what is missing stays so."""
    if value is None:
        return None
    # Escaped where it is no text itself, so that the result always has a UTF-8 form.
    plain = isinstance(value, str) and _text_bytes(value) >= 0
    return value if plain else json.dumps(value, sort_keys=True, default=str)


def _line_batches(task: Task) -> Iterator[tuple[int, list[bytes], int]]:
    """Whole lines that begin in the task: offset of the first, the lines, and the bytes of the file read so far."""
    with open_stored(task.file) as stored:
        text = unpack(task.file, stored)
        packed = bool(task.file.packing)
        offset = 0 if packed else _first_line(stored, task)
        while packed or offset < task.stop:
            lines = _lines(text, BATCH_BYTES if packed else min(BATCH_BYTES, task.stop - offset))
            if not lines:
                break
            size = sum(map(len, lines))
            yield offset, lines, stored.tell() if packed else offset + size
            offset += size
        if offset < task.stop and not packed:
            raise UserError(f"{task.file.name}: was cut short while it was read; run the command again")


def _lines(text: BinaryIO, size: int) -> list[bytes]:
    """Lines until they have `size` bytes: the last one begins before."""
    # The library's method goes on at exactly the size it is given, and takes 0 for no limit.
    return text.readlines(size - 1) if size > 1 else list(filter(None, [text.readline()]))


def _first_line(stored: BinaryIO, task: Task) -> int:
    """Go to the first line that begins in the task; a line that began before belongs to an earlier task."""
    if task.start == 0:
        return 0
    at = task.start - 1
    stored.seek(at)
    while at < task.stop - 1:
        block = stored.read(min(_BLOCK_BYTES, task.stop - 1 - at))
        end = block.find(b"\n")
        if end >= 0:
            stored.seek(at + end + 1)
            return at + end + 1
        if not block:
            break
        at += len(block)
    return task.stop


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _whole_text(task: Task, settings: Settings) -> Iterator[Rows]:
    with open_stored(task.file) as stored:
        content = unpack(task.file, stored).read()
    rows = Rows.empty(settings)
    rows.read = task.file.size
    _add_text(rows, without_marks(content), settings, (1, 0))
    yield rows


def _add_json(rows: Rows, line: bytes, settings: Settings, place: tuple[int, int | None]) -> None:
    try:
        row = parse_row(line)
    except BadRow as error:
        rows.add_bad(place, str(error))
    else:
        rows.add(row, settings, place)


def _add_text(rows: Rows, line: bytes, settings: Settings, place: tuple[int, int | None]) -> None:
    try:
        text = decode_text(line, settings)
    except BadRow as error:
        rows.add_bad(place, str(error))
    else:
        rows.add(dict.fromkeys(settings.json_keys, text), settings, place)


def _parse_leniently(line: bytes) -> Any:
    """Take what is no strict JSON but often found, in fields nobody asks for: NaN, escapes of half a character."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise BadRow("not JSON in UTF-8") from None


def check_row(row: dict[str, Any], settings: Settings) -> dict[str, int]:
    """Refuse a row without sound texts, or with a score that is no number; return the size of each text in UTF-8.

    Raises:
        BadRow, LeftOut: it has none, or a text is too long.
    """
    sizes = {}
    for key in settings.json_keys:
        text = row.get(key)
        if not isinstance(text, str):
            raise BadRow(f"field {key!r} is not text" if key in row else f"no field {key!r}")
        sizes[key] = _text_bytes(text)
        if sizes[key] < 0:
            raise BadRow(f"field {key!r} holds half of a surrogate pair")
        if sizes[key] > _LONGEST_TEXT:
            raise BadRow(f"field {key!r} is longer than 2 GiB")
        if settings.max_characters and len(text) > settings.max_characters:
            raise LeftOut(f"text over {settings.max_characters} characters")
    for key in settings.score_keys:
        value = row.get(key)
        if is_missing(value):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadRow(f"field {key!r} is not a finite number")
    return sizes


def is_missing(score: Any) -> bool:
    """Whether a document has no score: there is no such field, or it is null or NaN."""
    return score is None or score != score


def _label(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) and _text_bytes(value) >= 0 else ""


def _text_bytes(text: str) -> int:
    """Size in UTF-8; -1 where JSON escapes left half of a surrogate pair, which has no UTF-8 form."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1
