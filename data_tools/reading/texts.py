"""All texts of some files, one after another, for what looks at text only: training a tokenizer, and measuring one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.reading.columns import column_rows
from data_tools.reading.inputs import find_inputs
from data_tools.reading.limits import MAX_ROW_BYTES
from data_tools.reading.tasks import Settings, Task
from data_tools.reading.text import line_rows
from megatron_kaiyuan.errors import UserError


def texts(paths: Sequence[str | Path], key: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[str, str]]:
    """The text of each document and its domain, "" where it names none; of whatever format preprocessing reads.

    Args:
        key: the field or Parquet column that holds the text; of plain text, each line is a document.

    Raises:
        UserError: a file cannot be read, or a row holds no text; the message names file and row.
    """
    settings = Settings(Path(), (key,), max_row_bytes=max_row_bytes)
    for file in find_inputs(paths):
        read = column_rows if file.format == "parquet" else line_rows
        for rows in read(Task(file, 0, file.size, ""), settings):
            for bad in rows.bad:
                raise UserError(f"{file.name}:{bad.row}: {bad.reason}; mend or remove the row")
            yield from zip(rows.texts[key], rows.domains, strict=True)
