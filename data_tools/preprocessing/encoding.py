"""The ids of a batch of rows; a row with a text that the tokenizer's library gives up on becomes a bad row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.preprocessing.long_text import encode_texts
from data_tools.reading.text import BadPlace, Rows
from data_tools.tokenizers.tokenizer import CannotEncode, TextTokenizer

Encoded = tuple[NDArray[Any], NDArray[np.int32]]


def encode_rows(tokenizer: TextTokenizer, rows: Rows, append_eod: bool) -> dict[str, Encoded]:
    """The ids of all texts of each key, and how many each text has, as `encode_texts`.

    Refused rows are taken out of `rows`: no text is a reason to stop all others, and with `--max-bad-rows` the run
    continues without it.
    """
    while True:
        try:
            return {key: _encode(tokenizer, rows, key, append_eod) for key in rows.texts}
        except _Refused as refused:
            _take_out(rows, refused.row, str(refused))


class _Refused(ValueError):
    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


def _encode(tokenizer: TextTokenizer, rows: Rows, key: str, append_eod: bool) -> Encoded:
    try:
        return encode_texts(tokenizer, rows.texts[key], append_eod)
    except CannotEncode as error:
        raise _Refused(error.number, f"the tokenizer's library cannot encode {key!r} ({error.reason})") from error


def _take_out(rows: Rows, row: int, reason: str) -> None:
    rows.bad.append(BadPlace(*rows.places[row], reason))
    rows.bad.sort(key=lambda place: place.row)
    tables: list[dict[str, list[Any]]] = [rows.texts, rows.text_bytes, rows.scores, rows.meta]  # type: ignore[list-item]
    columns: list[list[Any]] = [rows.domains, rows.sources, rows.places]
    for values in [*columns, *(column for table in tables for column in table.values())]:
        del values[row]
