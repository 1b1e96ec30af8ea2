"""Characters on which libraries with Unicode tables of different age may disagree."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Beyond these planes are private characters and selectors of variants, too rare to be worth a longer table.
_TABLED = 0x40000


def has_unassigned(text: str) -> bool:
    """Whether a text holds a character that this Python's Unicode does not assign: only newer tables know what it is.

    The properties of an assigned character hardly ever change.
    """
    if text.isascii():
        return False
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return bool(_unassigned()[np.minimum(codes, _TABLED)].any())


@lru_cache(1)
def _unassigned() -> NDArray[np.bool_]:
    """For the code points of the planes with letters and signs, whether each is assigned to no character; then True."""
    unassigned: NDArray[np.bool_] = np.ones(_TABLED + 1, np.bool_)
    unassigned[:_TABLED] = [unicodedata.category(chr(code)) == "Cn" for code in range(_TABLED)]
    return unassigned
