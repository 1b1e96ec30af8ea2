"""Supervised fastText models (`.bin`, `.ftz`), applied by `data_tools._scores`."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools._scores import LinearModel
from data_tools.scores.scorer import text_memory
from megatron_kaiyuan.errors import UserError


class FastTextModel:
    """A model whose labels are text.

    Attributes:
        labels: in the model's order, as `__label__hq`.
    """

    def __init__(self, path: Path):
        try:
            self._model = LinearModel(os.fsencode(path))
        except ValueError as error:
            raise UserError(f"{path}: this file {error}; name a .bin or .ftz of fastText") from error
        except OSError as error:
            raise UserError(f"{path}: the fastText model cannot be read ({os.strerror(error.errno or 0)})") from error
        except MemoryError as error:
            raise UserError(f"{path}: the fastText model does not fit into memory") from error
        self.labels = [label.decode(errors="replace") for label in self._model.labels]

    def probabilities(self, texts: pa.LargeStringArray) -> NDArray[np.float64]:
        """Probability of each label: [rows, labels]; NaN rows: null, or no word that the model knows.

        Line breaks count as spaces, as the library's callers write them.
        """
        values = self._model.probabilities(*text_memory(texts))
        if texts.null_count:
            values[np.asarray(texts.is_null())] = np.nan
        return values


@functools.lru_cache(maxsize=4)
def load_model(path: Path) -> FastTextModel:
    """Load a model once in each process.

    Raises:
        UserError: it cannot be read, or is not a supervised fastText model.
    """
    return FastTextModel(path)
