"""How many bytes of text a corpus holds, which its sidecar counts document by document."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path, open_metadata
from megatron_kaiyuan.errors import UserError


def text_bytes(corpus: IndexedCorpus) -> int | None:
    """UTF-8 bytes of all documents; None for a corpus without a sidecar, as Megatron's own tools make it.

    Raises:
        UserError: the sidecar is damaged, is that of another corpus, or counts no bytes.
    """
    path = metadata_path(corpus.prefix)
    if not path.is_file():
        return None
    with open_metadata(path) as file:
        # By one thread: for several, pyarrow imports fsspec and pandas.
        column = file.read(["bytes"], use_threads=False).column("bytes")
    total = pyarrow.compute.sum(column.cast(pa.int64())).as_py() or 0
    if len(column) != len(corpus) or total <= 0:
        raise UserError(
            f"{path}: {len(column)} rows with {total} bytes for {len(corpus)} sequences; make the corpus again"
        )
    return int(total)
