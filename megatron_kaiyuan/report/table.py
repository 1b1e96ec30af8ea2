"""Rows of JSON as columns of numbers: a million rows of thirty figures are a quarter of a gigabyte, as dicts three."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

_BATCH = 4096
_NUMBERS = frozenset((int, float, bool, type(None)))
_TEXTS = frozenset((str, type(None)))


@dataclass
class _Column:
    """Values of one name: pieces of (places, values). The places of a piece are shared by all columns of its rows."""

    pieces: list[tuple[slice | Indices, Floats]] = field(default_factory=list)

    def add(self, places: slice | Indices, values: Floats) -> None:
        if not np.isnan(values).all():
            self.pieces.append((places, values))

    def whole(self, length: int) -> Floats:
        values = np.full(length, np.nan)
        for places, piece in self.pieces:
            values[places] = piece
        return values


class Table(Sequence[dict[str, Any]]):
    """Rows by number, and columns by name. Of a row numbers and texts are kept, `step` and `tokens` as integers.

    A row that is asked for is made then: of a long run ask for columns.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._columns: dict[str, _Column] = {}
        self._codes: dict[str, _Column] = {}
        self._texts: dict[str, int] = {}
        self._places: list[tuple[Indices, Indices]] = []
        self._waiting: list[dict[str, Any]] = []
        self._added = 0
        self._kept: Indices | None = None
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, whose `step` and `tokens` are counts below 2^63."""
        self._waiting.append(row)
        if len(self._waiting) == _BATCH:
            self._store()

    def keep(self, places: Indices) -> None:
        """Keep these rows only, in this order; no row is added any more."""
        self._store()
        self._kept = places

    @property
    def places(self) -> Indices:
        """Of each row how many were added before it."""
        return np.arange(len(self)) if self._kept is None else self._kept

    @property
    def steps(self) -> Indices:
        return self._counts(0)

    @property
    def tokens(self) -> Indices:
        return self._counts(1)

    @property
    def names(self) -> list[str]:
        """All names that rows have, whatever they hold."""
        self._store()
        return list(self._columns)

    def column(self, name: str) -> Floats:
        """One figure over the rows; NaN where a row has no number."""
        self._store()
        return self._of_kept(self._columns.get(name, _Column()).whole(self._added))

    def texts(self, name: str) -> Counter[str]:
        """How many rows have each text in a column."""
        self._store()
        codes = self._of_kept(self._codes.get(name, _Column()).whole(self._added))
        found, counts = np.unique(codes[~np.isnan(codes)].astype(np.int64), return_counts=True)
        words = list(self._texts)
        return Counter({words[code]: int(count) for code, count in zip(found, counts, strict=True)})

    def __len__(self) -> int:
        return self._added + len(self._waiting) if self._kept is None else len(self._kept)

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, number: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, number: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """A row as a dict with every name that any row has; None where it holds neither number nor text."""
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        words = list(self._texts)
        row: dict[str, Any] = {name: _or_none(self.column(name)[number]) for name in self.names}
        for name in self._codes:
            code = self._of_kept(self._codes[name].whole(self._added))[number]
            if not np.isnan(code):
                row[name] = words[int(code)]
        return {**row, "step": int(self.steps[number]), "tokens": int(self.tokens[number])}

    def _counts(self, which: int) -> Indices:
        self._store()
        pieces = [piece[which] for piece in self._places]
        return self._of_kept(np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64))

    def _of_kept(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._kept is None else values[self._kept]

    def _store(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        # Rows of the same names become columns at once; those in which something was validated have more.
        alike: dict[tuple[str, ...], list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(tuple(row), []).append(place)
        for names, places in alike.items():
            whole = len(places) == len(rows)
            where = slice(self._added, self._added + len(rows)) if whole else np.array(places) + self._added
            columns = zip(*(rows[place].values() for place in places), strict=True)
            for name, values in zip(names, columns, strict=True):
                self._store_column(name, where, values)
        self._places.append(tuple(np.array([row[name] for row in rows], dtype=np.int64) for name in ("step", "tokens")))  # type: ignore[arg-type]
        self._added += len(rows)

    def _store_column(self, name: str, places: slice | Indices, values: tuple[Any, ...]) -> None:
        kinds = set(map(type, values))
        self._columns.setdefault(name, _Column()).add(places, _numbers(values, kinds))
        if str in kinds:
            codes = [self._code(value) if isinstance(value, str) else math.nan for value in values]
            self._codes.setdefault(name, _Column()).add(places, np.array(codes, dtype=np.float64))

    def _code(self, text: str) -> float:
        return self._texts.setdefault(text, len(self._texts))


def number(value: Any) -> float:
    """A JSON value as a number; NaN where it is none."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _numbers(values: tuple[Any, ...], kinds: set[type]) -> Floats:
    if kinds <= _NUMBERS:
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            pass
    elif kinds <= _TEXTS:
        return np.full(len(values), np.nan)
    return np.array([number(value) for value in values], dtype=np.float64)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
