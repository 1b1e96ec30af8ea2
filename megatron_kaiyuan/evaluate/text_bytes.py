"""How many bytes of text a corpus holds, which its sidecar counts document by document."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError, excerpt


def text_bytes(corpus: IndexedCorpus) -> int | None:
    """UTF-8 bytes of all documents; None for a corpus without a sidecar, as Megatron's own tools make it.

    Raises:
        UserError: the sidecar is damaged, is that of another corpus, or counts no bytes.
    """
    path = sidecar_path(corpus.prefix)
    if not path.is_file():
        return None
    try:
        # By an open file and one thread: for a path, pyarrow imports fsspec and pandas.
        with open(path, "rb") as file:
            column = pq.ParquetFile(file).read(["bytes"], use_threads=False).column("bytes")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({excerpt(error)}); make the corpus again") from error
    total = pyarrow.compute.sum(column.cast(pa.int64())).as_py() or 0
    if len(column) != len(corpus) or total <= 0:
        raise UserError(
            f"{path}: {len(column)} rows with {total} bytes for {len(corpus)} sequences; make the corpus again"
        )
    return int(total)


def sidecar_path(prefix: Path) -> Path:
    """The per-sequence metadata of a corpus, as `kaiyuan-data preprocess` writes it."""
    return prefix.with_name(f"{prefix.name}.meta.parquet")
