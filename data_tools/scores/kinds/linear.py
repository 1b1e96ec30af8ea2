"""Linear classifiers of fastText: the probability of one label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from data_tools.scores.fasttext_model import load_model
from data_tools.scores.scorer import MEASURE, identity_of, measures, texts_of
from megatron_kaiyuan.errors import UserError


@dataclass(frozen=True)
class LinearScorer:
    """Probability of `label` under a supervised fastText model, dense or quantised, of any loss.

    The library reports p + 1e-5 (or, for the hierarchical softmax, about that); this is p. For the losses `ova` and
    `ns` the library rounds logits down to steps of 1/32, which is done here too: a rounding error at the edge of a step
    may differ by a whole one.

    Missing: a null text, and one that has no word or n-gram of the model.
    """

    version: ClassVar[int] = 1
    path: Path
    label: str = "__label__hq"
    name: str = "linear"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return {self.name: MEASURE}

    def identity(self) -> dict[str, Any]:
        return identity_of(self, {"path": self.path})

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        model = load_model(self.path)
        if self.label not in model.labels:
            known = ", ".join(model.labels[:8]) + (", ..." if len(model.labels) > 8 else "")
            raise UserError(f"{self.path}: the model has no label {self.label!r}; add ,label=... with one of {known}")
        return {self.name: measures(model.probabilities(texts_of(batch))[:, model.labels.index(self.label)])}


SCORER = LinearScorer
