"""What the documents of each quantile of a score are like: length, words, symbols, labels, rules, beginnings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.scores.audit_source import BYTES, DATASET, PLACE
from data_tools.scores.kinds.rules import RULES

# Texts that are read for each quantile, and the beginning of those that are shown.
READ, _SHOWN_CHARACTERS = 100, 200
# A character of a script without spaces is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")
_WORDS, _FEWEST_WORDS = 200, 20
_MOST_LABELS, _MOST_VALUES = 3, 1000
_RULES_SHOWN = 8


@dataclass(frozen=True)
class QuantileRows:
    """Rows of the table that make a quantile of a score, in the order of their draws; the first are read."""

    rows: np.ndarray

    @property
    def read(self) -> np.ndarray:
        return self.rows[:READ]


def cut(scores: np.ndarray, draw: np.ndarray, count: int) -> list[QuantileRows]:
    """Equally many documents in each quantile, worst first; equal scores in the order of their draws."""
    there = np.flatnonzero(~np.isnan(scores))
    order = there[np.lexsort((draw[there], scores[there]))]
    bounds = [len(order) * number // count for number in range(count + 1)]
    pieces = [order[first:stop] for first, stop in pairwise(bounds)]
    return [QuantileRows(piece[np.argsort(draw[piece])]) for piece in pieces]


def verdict_columns(table: pa.Table) -> list[str]:
    """The verdicts of the families of rules: numbers that are 0 and 1 only, named as the scorer `rules` names them."""
    found = []
    for name in table.column_names:
        if name.rpartition("_")[2] not in RULES or not pa.types.is_floating(table.schema.field(name).type):
            continue
        values = table.column(name).to_numpy()
        values = values[~np.isnan(values)]
        if len(values) and np.isin(values, (0.0, 1.0)).all():
            found.append(name)
    return found


def label_columns(table: pa.Table, group: str) -> list[str]:
    """Text columns with few different values, such as a language or the rule that fails; the group itself apart."""
    names = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    found = []
    for name in names:
        values = table.column(name).drop_null()
        distinct = len(values.unique())
        if name != group and 1 < distinct <= min(_MOST_VALUES, len(values) // 2):
            found.append(name)
    return found


def portray(
    table: pa.Table,
    score: str,
    quantiles: Sequence[QuantileRows],
    texts: Mapping[tuple[int, int], str],
    groups: tuple[np.ndarray, Sequence[str]],
    labels: Sequence[str],
    verdicts: Sequence[str],
    shown: int,
) -> list[dict[str, Any]]:
    """A row for each quantile, worst first.

    Args:
        texts: by dataset and place, of the documents that are read.
        groups: number of each document's group, and their names.
        shown: beginnings for each quantile.

    Returns:
        `documents`, `from`, `to` (scores), `bytes` and `tokens` (means), `type_token_ratio` (of the first 200 words,
        mean of texts with 20 or more), `symbols` (share of characters that are no letter, number or space), `groups`,
        `labels` (shares of the most frequent values), `fails` (share with the verdict 0), `samples`.
    """
    values = table.column(score).to_numpy()
    numbers, names = groups
    found = []
    for quantile in quantiles:
        part = table.take(pa.array(quantile.rows))
        read = [texts[key] for key in _keys(table, quantile.read) if key in texts]
        shares = np.bincount(numbers[quantile.rows], minlength=len(names)) / max(len(quantile.rows), 1)
        scored = values[quantile.rows]
        found.append(
            {
                "documents": len(quantile.rows),
                "from": float(scored.min()) if len(scored) else None,
                "to": float(scored.max()) if len(scored) else None,
                "bytes": _mean(part, BYTES),
                "tokens": _mean(part, "tokens"),
                "type_token_ratio": _average([ratio for text in read if (ratio := type_token_ratio(text)) is not None]),
                "symbols": _average([symbol_share(text) for text in read if text]),
                "groups": {name: float(share) for name, share in zip(names, shares, strict=True) if share},
                "labels": {name: _most_frequent(part.column(name).to_pylist()) for name in labels},
                "fails": _failing(part, verdicts),
                "samples": [" ".join(text[:_SHOWN_CHARACTERS].split()) for text in read[:shown]],
            }
        )
    return found


def wanted_texts(table: pa.Table, quantiles: Sequence[QuantileRows]) -> set[tuple[int, int]]:
    """Dataset and place of the documents that `portray` reads."""
    return {key for quantile in quantiles for key in _keys(table, quantile.read)}


def type_token_ratio(text: str) -> float | None:
    """Different words / words, of the first 200, so that long texts do not lose; None below 20 words."""
    words = [match.group().lower() for match, _ in zip(_WORD.finditer(text), range(_WORDS), strict=False)]
    return len(set(words)) / len(words) if len(words) >= _FEWEST_WORDS else None


def symbol_share(text: str) -> float:
    """Characters that are no letter, number or space / characters."""
    return sum(not (character.isalnum() or character.isspace()) for character in text) / len(text)


def _keys(table: pa.Table, rows: np.ndarray) -> list[tuple[int, int]]:
    part = table.select([DATASET, PLACE]).take(pa.array(rows))
    return list(zip(part.column(0).to_pylist(), part.column(1).to_pylist(), strict=True))


def _mean(part: pa.Table, column: str) -> float | None:
    if column not in part.column_names or not pa.types.is_floating(part.schema.field(column).type):
        return None
    return _average(part.column(column).drop_null().to_numpy())


def _average(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _most_frequent(values: Sequence[str | None]) -> dict[str, float]:
    counts = Counter(value for value in values if value is not None)
    return {value: count / len(values) for value, count in counts.most_common(_MOST_LABELS)}


def _failing(part: pa.Table, verdicts: Sequence[str]) -> dict[str, float]:
    shares = {}
    for name in verdicts:
        values = part.column(name).drop_null().to_numpy()
        shares[name] = 1 - float(values.mean()) if len(values) else 0.0
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:_RULES_SHOWN])
