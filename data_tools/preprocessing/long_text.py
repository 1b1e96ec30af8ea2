"""Encoding texts of any length in bounded memory.

A tokenizer library keeps far more than the ids while it works on a text, up to a hundred times its size. So a long
text is encoded in pieces, and cut only where the tokenizer itself always cuts: both sides of the cut, encoded together
and one by one, give the same ids. Where there is no such place (one word of many megabytes) it stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.tokenizers.tokenizer import CannotEncode, TextTokenizer

PIECE_CHARACTERS = 1 << 18
# Text on both sides of a cut that is encoded to check it, at least: some words to settle in.
_CONTEXT = 256
_TRIES = 8
# From the end of a line to a letter, the surest place, or before a blank between words, or after a full stop.
_CANDIDATES = (re.compile(r"(?<=\S\n)(?=\w)"), re.compile(r"(?<=\w)(?= \w)"), re.compile(r"(?<=[。！？，])(?=\w)"))


def encode_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], append_eod: bool, piece: int = PIECE_CHARACTERS
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """What `tokenizer.encode_flat` returns, in memory that does not grow with the longest text.

    Args:
        piece: characters that are encoded at once, about.

    Raises:
        CannotEncode: the tokenizer's library gives up on a text; its `number` is that in `texts`.
    """
    if max(map(len, texts), default=0) <= 2 * piece:
        return tokenizer.encode_flat(texts, append_eod)
    parts = []
    for number, text in enumerate(texts):
        try:
            parts.append(_encode_one(tokenizer, text, append_eod, piece))
        except CannotEncode as error:
            error.number = number
            raise
    lengths = np.array([len(part) for part in parts], np.int32)
    return np.concatenate(parts), lengths


def _encode_one(tokenizer: TextTokenizer, text: str, append_eod: bool, piece: int) -> NDArray[Any]:
    if len(text) <= 2 * piece:
        return tokenizer.encode_flat([text], append_eod)[0]
    parts = [tokenizer.encode_flat([part], False)[0] for part in _pieces(tokenizer, text, piece)]
    # A text without ids, as of blanks that the tokenizer drops, has no end either.
    if append_eod and any(map(len, parts)):
        parts.append(np.array([tokenizer.eod_id], parts[0].dtype))
    return np.concatenate(parts)


def _pieces(tokenizer: TextTokenizer, text: str, piece: int) -> Iterator[str]:
    # No token is longer, so that one which spans a cut is seen whole.
    context = max(_CONTEXT, max(map(len, tokenizer.vocabulary)))
    start, search = 0, piece
    while len(text) - search > piece:
        cut = _cut(tokenizer, text, search, search + piece, context)
        if cut:
            yield text[start:cut]
            start = cut
        search = (cut or search) + piece
    yield text[start:]


def _cut(tokenizer: TextTokenizer, text: str, first: int, last: int, context: int) -> int:
    """A place between `first` and `last` where cutting changes no id; 0 when none was found."""
    for candidates in _CANDIDATES:
        for tried, found in enumerate(candidates.finditer(text, first, last)):
            if tried == _TRIES:
                break
            at = found.start()
            left, right = text[max(at - context, 0) : at], text[at : at + context]
            both, apart = (tokenizer.encode_flat(case, False)[0] for case in ([left + right], [left, right]))
            if np.array_equal(both, apart):
                return at
    return 0
