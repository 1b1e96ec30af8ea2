"""Rows that come in: JSON lines and plain text, in batches whose place in the file is known."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from data_tools.reading.lines import line_batches, read_whole
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.unicode_marks import without_mark, without_marks
from data_tools.reading.values import BadRow, LeftOutRow, as_number, as_text, is_missing, may_be_rounded, text_bytes

# Lengths in the index and sizes in the metadata are 32-bit.
_LONGEST_TEXT = (1 << 31) - 1


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
        left_out: rows that are neither here nor bad, by reason.
        places: of each row, its number in the task and the offset of its line, as in `BadPlace`.
        count: lines or Parquet rows that were read, whatever became of them.
        read: bytes of the file as stored that were read so far.
    """

    texts: dict[str, list[str]]
    text_bytes: dict[str, list[int]]
    scores: dict[str, list[float]]
    meta: dict[str, list[str | None]]
    domains: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    bad: list[BadPlace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    places: list[tuple[int, int | None]] = field(default_factory=list)
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
            meta = {key: as_text(row.get(key), key) for key in self.meta}
        except BadRow as error:
            self.bad.append(BadPlace(*place, str(error)))
        except LeftOutRow as error:
            self.left_out[str(error)] += 1
        else:
            for key, size in sizes.items():
                self.texts[key].append(row[key])
                self.text_bytes[key].append(size)
            for key, scores in self.scores.items():
                scores.append(as_number(row.get(key)))
            for key, value in meta.items():
                self.meta[key].append(value)
            self.places.append(place)
            self.domains.append(label(row, "domain"))
            self.sources.append(label(row, "source"))

    def add_bad(self, place: tuple[int, int | None], reason: str) -> None:
        self.count += 1
        self.bad.append(BadPlace(*place, reason))


def line_rows(task: Task, settings: Settings) -> Iterator[Rows]:
    """The rows of a task over JSON lines or plain text.

    Raises:
        UserError: the file cannot be read or unpacked.
    """
    if _is_one_text(task, settings):
        yield from _whole_text(task, settings)
        return
    first = 1
    for lines in line_batches(task, settings.max_row_bytes):
        rows = Rows.empty(settings)
        rows.read = lines.read
        for place, line in lines.placed(first):
            row = None if line is None else without_mark(line)
            # Blank lines are common at the end of a file and are not rows.
            if row is not None and _is_blank(row):
                rows.count += 1
            else:
                _add(rows, row, settings, place, task)
        first += len(lines.contents)
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
    if _is_one_text(task, settings):
        batch = JsonRows(count=1)
        content = read_whole(task, settings.max_row_bytes)
        _take(batch, None if content is None else without_marks(content), settings, (1, 0), task)
        yield batch
        return
    first = 1
    for lines in line_batches(task, settings.max_row_bytes):
        batch = JsonRows(count=len(lines.contents))
        for place, line in lines.placed(first):
            row = None if line is None else without_mark(line)
            if row is None or not _is_blank(row):
                _take(batch, row, settings, place, task)
        first += len(lines.contents)
        yield batch


def _take(batch: JsonRows, line: bytes | None, settings: Settings, place: tuple[int, int | None], task: Task) -> None:
    try:
        row = _fields(line, settings, task, None)
        check_names(row)
    except BadRow as error:
        batch.bad.append(BadPlace(*place, str(error)))
    else:
        batch.rows.append((place, row))


def _fields(line: bytes | None, settings: Settings, task: Task, exact: Collection[str] | None) -> dict[str, Any]:
    """The fields of a row from its line, or from the bytes of a whole text; None: it is too long.

    Raises:
        BadRow: it holds none.
    """
    if line is None:
        raise BadRow(too_long(settings))
    if task.file.format == "text":
        return dict.fromkeys(settings.json_keys, decode_text(line, settings))
    return parse_row(line, exact)


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


def parse_row(line: bytes, exact: Collection[str] | None = None) -> dict[str, Any]:
    """One JSON object.

    Args:
        exact: fields whose whole numbers are wanted as they are written, beyond 64 bits too; None: all.

    Raises:
        BadRow: it is not that.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _parse_leniently(line)
    if not isinstance(row, dict):
        raise BadRow("a JSON array, not an object" if isinstance(row, list) else "not a JSON object")
    if any(may_be_rounded(row.get(name)) for name in (row if exact is None else exact)):
        row = _parse_leniently(line)
    return row


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _is_one_text(task: Task, settings: Settings) -> bool:
    return task.file.format == "text" and settings.text_documents == "file"


def _whole_text(task: Task, settings: Settings) -> Iterator[Rows]:
    content = read_whole(task, settings.max_row_bytes)
    rows = Rows.empty(settings)
    rows.read = task.file.size
    _add(rows, None if content is None else without_marks(content), settings, (1, 0), task)
    yield rows


def _add(rows: Rows, line: bytes | None, settings: Settings, place: tuple[int, int | None], task: Task) -> None:
    try:
        row = _fields(line, settings, task, settings.meta_keys)
    except BadRow as error:
        rows.add_bad(place, str(error))
    else:
        rows.add(row, settings, place)


def _parse_leniently(line: bytes) -> Any:
    """Take what is not strict JSON but common, in fields that no option names: NaN, escapes of half a character."""
    try:
        return json.loads(line)
    except RecursionError:
        raise BadRow("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BadRow("not JSON in UTF-8") from None
    except ValueError:
        raise BadRow("a number of thousands of digits") from None


def check_row(row: dict[str, Any], settings: Settings) -> dict[str, int]:
    """Refuse a row without sound texts, or with a score that is no number; return the size of each text in UTF-8.

    Raises:
        BadRow, LeftOut: it has none, or a text is too long.
    """
    sizes = {}
    for key in settings.json_keys:
        text = row.get(key)
        if not isinstance(text, str):
            raise BadRow(_no_such(row, key, "text"))
        sizes[key] = text_bytes(text)
        if sizes[key] < 0:
            raise BadRow(f"field {key!r} holds half of a surrogate pair")
        if sizes[key] > _LONGEST_TEXT:
            raise BadRow(f"field {key!r} is longer than 2 GiB")
        if settings.max_characters and len(text) > settings.max_characters:
            raise LeftOutRow(f"text over {settings.max_characters} characters")
    if 0 < settings.max_row_bytes < sum(sizes.values()):
        raise BadRow(too_long(settings))
    for key in settings.score_keys:
        if not (is_missing(row.get(key)) or _is_finite(row[key])):
            raise BadRow(_no_such(row, key, "a finite number"))
    return sizes


def check_names(row: dict[str, Any]) -> None:
    """Refuse a row of which a field can be no column.

    Raises:
        BadRow: its name has no UTF-8 form.
    """
    for name in row:
        if text_bytes(name) < 0:
            raise BadRow(f"the name {as_text(name)} of a field holds half of a surrogate pair")


def too_long(settings: Settings) -> str:
    """Why a row above the limit is bad."""
    return f"over the {settings.max_row_bytes:,} bytes of --max-row-bytes"


def label(row: dict[str, Any], name: str) -> str:
    """Return a field that says where a text is from; "" where its value is not a string."""
    value = row.get(name)
    return value if isinstance(value, str) and text_bytes(value) >= 0 else ""


def _no_such(row: Mapping[str, Any], key: str, wanted: str) -> str:
    """Why a field does not hold what is wanted."""
    if key not in row:
        return f"no field {key!r}"
    return f"field {key!r} is {'true or false, ' if isinstance(row[key], bool) else ''}not {wanted}"


def _is_finite(score: Any) -> bool:
    try:
        return math.isfinite(as_number(score))
    except BadRow:
        return False
