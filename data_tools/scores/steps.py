"""The steps of `kaiyuan-data score` over documents: mask personal data, add scores, drop by filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from data_tools.reading.arrow_values import in_words, is_number
from data_tools.reading.shard import TEXT
from data_tools.scores.filters import Condition
from data_tools.scores.scorer import Scorer
from data_tools.steps.step import drop, with_column
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class MaskStep:
    """E-mail addresses, IP addresses and telephone numbers in the text are masked; `masked` counts them."""

    name: ClassVar[str] = "mask personal data"
    version: ClassVar[int] = 1

    def identity(self) -> dict[str, Any]:
        return {}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        from data_tools.scores.personal_data import mask

        texts, counts = mask(documents.column(TEXT))
        documents = with_column(documents, TEXT, texts)
        for kind, values in counts.items():
            documents = add_column(documents, f"masked_{kind}", values)
        return documents


@dataclass(frozen=True)
class ScoreStep:
    """Adds the columns of scorers, in their order; a scorer sees the columns of those before it."""

    scorers: tuple[Scorer, ...]
    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1

    def identity(self) -> dict[str, Any]:
        return {"scorers": [scorer.identity() for scorer in self.scorers]}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        for scorer in self.scorers:
            # A field of JSON lines is no column of a shard in which no row has it; `check` is for what is nowhere.
            if _is_absent(scorer, documents):
                values = {name: pa.nulls(len(documents), kind) for name, kind in scorer.columns.items()}
            else:
                values = scorer.score(documents)
            for name, column in values.items():
                documents = add_column(documents, name, column)
        return documents

    def check(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        """As `apply`, for a batch without rows before the work: models are loaded, and columns must be there.

        Raises:
            UserError: a model or a column is wrong or missing.
        """
        for scorer in self.scorers:
            if _is_absent(scorer, documents):
                scorer.score(documents)  # which says so
            documents = ScoreStep((scorer,)).apply(documents)
        return documents


def _is_absent(scorer: Scorer, documents: pa.RecordBatch) -> bool:
    source = getattr(scorer, "column", None)
    return source is not None and source not in documents.schema.names


@dataclass(frozen=True)
class NumbersStep:
    """Changes nothing; refuses a column of another type than numbers, which may differ between files."""

    wanted: tuple[str, ...]
    name: ClassVar[str] = "numbers"
    version: ClassVar[int] = 1

    def identity(self) -> dict[str, Any]:
        return {"columns": self.wanted}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        for column in set(self.wanted).intersection(documents.schema.names):
            kind = documents.schema.field(column).type
            if not is_number(kind):
                raise UserError(
                    f"--quantile: column {column!r} is {in_words(kind)}, not numbers; name another one, or mend it"
                )
        return documents


@dataclass(frozen=True)
class FilterStep:
    """Drops documents for which a condition does not hold; the reason is what is true of them."""

    conditions: tuple[Condition, ...]
    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1

    def identity(self) -> dict[str, Any]:
        return {"filters": [str(condition) for condition in self.conditions]}

    def apply(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        for condition in self.conditions:
            documents = drop(documents, condition.verdict(documents).reasons)
        return documents


def add_column(documents: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """The documents with a new column.

    Raises:
        UserError: there is one of that name.
    """
    if name in documents.schema.names:
        raise UserError(f"column {name!r} is in the input already; drop it there, or name the new one with ,name=...")
    return documents.append_column(name, values)
