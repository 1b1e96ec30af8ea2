"""A column that the documents have already, as a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.reading.arrow_values import in_words, is_number, to_doubles
from data_tools.scores.scorer import MEASURE, identity_of, measures
from data_tools.steps.step import column_list
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class ColumnScorer:
    """Number x scale + shift. Null, NaN and infinite values are missing scores.

    Attributes:
        column: its name in the input: numbers or bools.
        name: of the score; empty: the column's.
    """

    version: ClassVar[int] = 1
    column: str
    name: str = ""
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.column)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: MEASURE}

    def identity(self) -> dict[str, Any]:
        return identity_of(self)

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        position = batch.schema.get_field_index(self.column)
        if position < 0:
            raise UserError(f"column {self.column!r} is not in the input, which has {column_list(batch.schema.names)}")
        kind = batch.schema.field(position).type
        if not (is_number(kind) or pa.types.is_boolean(kind)):
            raise UserError(f"column {self.column!r} is {in_words(kind)}, not numbers; it cannot be a score")
        values = batch.column(position)
        if pa.types.is_boolean(kind):
            values = values.cast(pa.int8())
        numbers = pc.fill_null(to_doubles(values), float("nan")).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = numbers * self.scale + self.shift
        return {self.name: measures(np.where(np.isfinite(scaled), scaled, np.nan))}


SCORER = ColumnScorer
