"""Text from all over the inputs, to prove the tokenizer's engine on. Every rank takes the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from data_tools.reading.columns import column_rows
from data_tools.reading.inputs import InputFile
from data_tools.reading.tasks import Settings, Task, is_whole
from data_tools.reading.text import line_rows

# A twentieth of the inputs, and of large ones 2 MB; from so many places, evenly spread over their bytes.
_PART, _LEAST, _MOST, _PLACES = 20, 200_000, 2_000_000, 32
# In pieces, because the reference needs memory many times the size of a text.
_PIECE = 1 << 15


def sample_texts(files: Sequence[InputFile], settings: Settings) -> list[str]:
    """Beginnings of texts. Of a packed file only the first ones, since nothing else can be reached without the rest."""
    total = sum(file.size for file in files)
    each = min(max(total // _PART, _LEAST), _MOST) // _PLACES
    step, before = max(total // _PLACES, 1), 0
    sample: list[str] = []
    for file in files:
        first, last = (-(-at // step) for at in (before, before + file.size))
        if first < last:
            offsets = [0, *(at * step - before for at in range(first + 1, last))]
            sample += _file_texts(file, offsets, each, settings)
        before += file.size
    return sample


def unscored_keys(files: Sequence[InputFile], settings: Settings) -> list[str]:
    """Score keys that no row at the beginning of the files has: most likely a wrong name, found in a moment.

    Of Parquet files the schema says it; they are not looked at.
    """
    left = list(settings.score_keys)
    for file in [file for file in files if file.format != "parquet"][:_PLACES] if left else []:
        whole = is_whole(file, settings)
        rows = next(line_rows(Task(file, 0, file.size if whole else min(file.size, _LEAST), ""), settings), None)
        if rows is None or not rows.domains:
            return []
        left = [key for key in left if all(map(math.isnan, rows.scores[key]))]
    return left if any(file.format != "parquet" for file in files) else []


def _file_texts(file: InputFile, offsets: list[int], each: int, settings: Settings) -> list[str]:
    sample: list[str] = []
    left = 0
    if is_whole(file, settings):
        offsets, left = [0], each * (len(offsets) - 1)
    # From the last to the first: where too little text begins, a place before it gives more.
    for offset, stop in reversed(list(zip(offsets, [*offsets[1:], file.size], strict=True))):
        left += each
        for text in _texts(Task(file, offset, stop, ""), left, settings):
            part = text[:left]
            sample += [part[at : at + _PIECE] for at in range(0, len(part), _PIECE)]
            left -= len(part.encode())
            if left <= 0:
                break
    return sample


def _texts(task: Task, size: int, settings: Settings) -> Iterator[str]:
    """Texts of the rows that begin in the task; of lines, those within `size` bytes of its start."""
    parquet = task.file.format == "parquet"
    part = task if parquet else replace(task, stop=min(task.start + size, task.stop))
    for rows in (column_rows if parquet else line_rows)(part, settings):
        yield from chain.from_iterable(rows.texts.values())
