"""The metadata of a corpus, opened: Parquet, row i for sequence i. `kaiyuan-data preprocess` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_kaiyuan.data.indexed import beside
from megatron_kaiyuan.errors import UserError, excerpt

AGAIN = "make the corpus again, or copy it again from where it came"
# Of every corpus; then come its own.
FIXED = {"tokens": pa.int32(), "bytes": pa.int32(), "domain": pa.string(), "source": pa.string()}
# What pyarrow raises for damaged files, beside its own errors: for names that are not UTF-8, for instance.
_DAMAGE = (OSError, ValueError, KeyError, pa.ArrowException)


def metadata_path(prefix: Path) -> Path:
    """The file that lies beside a corpus."""
    return beside(prefix, ".meta.parquet")


@contextmanager
def open_metadata(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a corpus' metadata; what pyarrow raises in the body says which file it is about.

    Raises:
        UserError: the file is missing, damaged, or has a column of another type than every corpus has.
    """
    try:
        # By an open file: for a path, pyarrow imports fsspec and pandas.
        with open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            _check_types(path, parquet.schema_arrow)
            yield parquet
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; {AGAIN}") from error
    except _DAMAGE as error:
        raise UserError(f"{path}: cannot be read ({excerpt(error)}); {AGAIN}") from error


def _check_types(path: Path, schema: pa.Schema) -> None:
    for field in schema:
        if field.type != (expected := FIXED.get(field.name, field.type)):
            raise UserError(f"{path}: column {field.name!r} holds {field.type}, not {expected}; {AGAIN}")


def whole_text(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows of which each text is UTF-8.

    Raises:
        pyarrow.ArrowInvalid: one is not; pyarrow itself finds that only where a text becomes a string of Python.
    """
    rows.validate(full=True)
    return rows
