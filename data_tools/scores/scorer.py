"""What a scorer is: a pure function of a batch of documents that adds columns, with a name, a version and settings.

A scorer's class is a frozen dataclass in a module of `data_tools/scores/kinds/`, named `SCORER` there; the fields are
its settings. Such an object pickles, is cheap, and loads its model when it first scores, once in each process.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.reading.arrow_values import in_words
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

TEXT = "text"
MEASURE = pa.float64()
WORD = pa.string()
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Scorer(Protocol):
    """Adds the columns of one score, or of one family of them."""

    @property
    def name(self) -> str:
        """The column of a scorer with one column; the others' names begin with it and `_`."""

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that `score` returns, in order: float64 (a verdict is 1.0 or 0.0) or string."""

    def identity(self) -> dict[str, Any]:
        """JSON: kind, version, settings, and checksums of the model's files. Equal identities give equal scores.

        Raises:
            UserError: a file is missing.
        """

    def score(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Score each row.

        Args:
            batch: the documents: column `text` (large_string or string), and whatever columns the input has.

        Returns:
            An array of `len(batch)` for each of `columns`. The same batch gives the same bits; a row has the same bits
            in any batch, but for the scorers of neural networks (classifier, loss), which round by what is padded.
            A null is a missing score: the row's text is null, or the scorer cannot judge it (its docstring says when).
            A batch without rows loads the model all the same: score one before anything is written, and a wrong model
            is found early.

        Raises:
            UserError: a model cannot be loaded, or a column or package is missing.
        """


def texts_of(batch: pa.RecordBatch) -> pa.LargeStringArray:
    """The documents of a batch.

    Raises:
        UserError: there is no column `text`, or it does not hold text.
    """
    position = batch.schema.get_field_index(TEXT)
    if position < 0:
        raise UserError(
            f"column {TEXT!r} is missing: a scorer reads the documents from it; name the input's text column"
        )
    column = batch.column(position)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"column {TEXT!r} is {in_words(column.type)}, not text; name the input's text column")
    return column.cast(pa.large_string())


def text_memory(texts: pa.LargeStringArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where texts lie: offsets [rows + 1] and UTF-8 bytes; text i is data[offsets[i] : offsets[i + 1]], null or not."""
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or offsets is None:
        return np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    positions = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return positions, np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)


def measures(values: Iterable[float | None] | np.ndarray) -> pa.DoubleArray:
    """Scores as an array of float64; NaN and None are missing scores."""
    array = np.asarray(
        values if isinstance(values, np.ndarray) else [math.nan if value is None else value for value in values],
        dtype=np.float64,
    )
    return pa.array(array, type=MEASURE, mask=np.isnan(array))


def identity_of(scorer: Any, files: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Identity of a dataclass scorer.

    Args:
        files: by setting, the file or the folder that it names: its contents count, not its path.
    """
    files = files or {}
    settings = {
        field.name: getattr(scorer, field.name) for field in dataclasses.fields(scorer) if field.name not in files
    }
    return {
        "kind": type(scorer).__module__.rpartition(".")[2],
        "version": scorer.version,
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "files": {setting: _checksums(path) for setting, path in files.items()},
    }


def check_name(name: str) -> str:
    """The name of a column.

    Raises:
        UserError: it is not a plain name.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"score name {name!r}: use letters, digits and _, a letter first")
    return name


def _checksums(path: Path) -> dict[str, str]:
    if path.is_file():
        return {"": checksum(path)}
    if not path.is_dir():
        raise UserError(f"{path}: not found; name the file or folder of the scorer's model")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): checksum(file) for file in files}
