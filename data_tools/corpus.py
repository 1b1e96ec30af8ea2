"""Writing a corpus: Megatron's `.bin/.idx` pair, one metadata row a sequence, and the manifest that seals them.

The pair is byte for byte what megatron.core's IndexedDatasetBuilder writes for the same documents.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from megatron_kaiyuan.data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, bin_path, idx_path
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path, checksum, write_json

# Megatron's limit: ids of a smaller vocabulary are stored in 16 bits, of any other in 32.
_UINT16_VOCAB_LIMIT = 65500
_ROWS_PER_GROUP = 1 << 16
_INDEX_ROWS = 1 << 20


def metadata_path(prefix: Path) -> Path:
    """The per-sequence metadata of a corpus."""
    return prefix.with_name(f"{prefix.name}.meta.parquet")


def manifest_path(prefix: Path) -> Path:
    """The manifest of a corpus, its last written file."""
    return prefix.with_name(f"{prefix.name}.manifest.json")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How Megatron stores ids below `vocab_size`, which is the largest id + 1."""
    return np.dtype("<u2" if vocab_size < _UINT16_VOCAB_LIMIT else "<i4")


@dataclass
class Documents:
    """A batch of documents; entry i of each list belongs to document i.

    Attributes:
        tokens: the ids of all documents, one after another.
        lengths: tokens of each document; 0 stands for an empty one, which gets no sequence and no metadata row.
        text_bytes: size of each text in UTF-8.
        domains, sources: where each text is from; "" when unknown.
        scores: one list for each score name.
    """

    tokens: NDArray[Any]
    lengths: Sequence[int]
    text_bytes: Sequence[int]
    domains: Sequence[str]
    sources: Sequence[str]
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)


class CorpusWriter:
    """Streams documents into a corpus; memory is 12 bytes a document, whatever its size.

    A context manager: the files appear under their names when the block ends well, the manifest last. After an
    exception nothing of the new corpus is left, and an older one stays as it was.

    Args:
        prefix: path without suffix.
        tokenizer: `path`, `fingerprint`, `vocab_size`, `eod_id`, for the manifest.
        scores: names of the score columns.
        sources: input files, for the manifest.

    Attributes:
        skipped: documents that were left out, by reason; the caller adds its own reasons.
        sequences, tokens, max_token_id: what was written so far (max_token_id is -1 before the first token).
    """

    def __init__(
        self, prefix: Path, tokenizer: Mapping[str, Any], scores: Sequence[str] = (), sources: Sequence[str] = ()
    ):
        self.prefix = Path(prefix)
        self.skipped: Counter[str] = Counter()
        self.tokens, self.max_token_id = 0, -1
        self._tokenizer, self._scores, self._sources = dict(tokenizer), list(scores), list(sources)
        self._dtype = token_dtype(self._tokenizer["vocab_size"])
        self._lengths, self._document_indices = array("i"), array("q", [0])
        self._pending = self._schema().empty_table()
        self._stack = ExitStack()

    @property
    def sequences(self) -> int:
        return len(self._lengths)

    def __enter__(self) -> CorpusWriter:
        with ExitStack() as stack:
            self._index_file = stack.enter_context(atomic_path(idx_path(self.prefix)))
            metadata_file = stack.enter_context(atomic_path(metadata_path(self.prefix)))
            bin_file = stack.enter_context(atomic_path(bin_path(self.prefix)))
            self._bin: BinaryIO = stack.enter_context(open(bin_file, "wb"))
            self._metadata = stack.enter_context(pq.ParquetWriter(metadata_file, self._schema(), compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._metadata.write_table(self._pending.combine_chunks())
            with open(self._index_file, "wb") as file:
                _write_index(file, self._dtype, self._lengths, self._document_indices)
            # A manifest must never describe files that are just being replaced.
            manifest_path(self.prefix).unlink(missing_ok=True)
        write_json(manifest_path(self.prefix), self._manifest())

    def add(self, documents: Documents) -> None:
        """Append a batch.

        Raises:
            UserError: an id is negative or not below the tokenizer's vocabulary size.
        """
        tokens, lengths = np.asarray(documents.tokens), np.asarray(documents.lengths, np.int32)
        if int(lengths.sum(dtype=np.int64)) != tokens.size:
            raise ValueError(f"lengths add up to {lengths.sum(dtype=np.int64)}, not to the {tokens.size} tokens")
        self._check_ids(tokens)
        self._bin.write(tokens.astype(self._dtype, copy=False).tobytes())
        self.tokens += tokens.size
        kept = lengths > 0
        first = len(self._lengths)
        self._lengths.frombytes(lengths[kept].tobytes())
        # Like Megatron, an empty document repeats the document index and has no sequence.
        self._document_indices.frombytes((first + np.cumsum(kept, dtype=np.int64)).tobytes())
        self.skipped["empty text"] += int((~kept).sum())
        self._write_rows(self._rows(documents, lengths, kept))

    def _check_ids(self, tokens: NDArray[Any]) -> None:
        if not tokens.size:
            return
        largest, smallest = int(tokens.max()), int(tokens.min())
        if smallest < 0 or largest >= self._tokenizer["vocab_size"]:
            wrong = smallest if smallest < 0 else largest
            raise UserError(
                f"{self.prefix}: token id {wrong} is outside the vocabulary of {self._tokenizer['vocab_size']}; "
                "use the tokenizer that made these ids"
            )
        self.max_token_id = max(self.max_token_id, largest)

    def _schema(self) -> pa.Schema:
        columns = [("tokens", pa.int32()), ("bytes", pa.int32()), ("domain", pa.string()), ("source", pa.string())]
        return pa.schema(columns + [(name, pa.float64()) for name in self._scores])

    def _rows(self, documents: Documents, lengths: NDArray[np.int32], kept: NDArray[np.bool_]) -> pa.Table:
        columns: list[ArrayLike] = [lengths, documents.text_bytes, documents.domains, documents.sources]
        columns += [documents.scores[name] for name in self._scores]
        schema = self._schema()
        arrays = [pa.array(column, column_type) for column, column_type in zip(columns, schema.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema).filter(pa.array(kept))

    def _write_rows(self, rows: pa.Table) -> None:
        """Write full row groups only, so that the file does not depend on how documents were batched."""
        rows = pa.concat_tables([self._pending, rows])
        while len(rows) >= _ROWS_PER_GROUP:
            self._metadata.write_table(rows.slice(0, _ROWS_PER_GROUP).combine_chunks())
            rows = rows.slice(_ROWS_PER_GROUP)
        self._pending = rows

    def _manifest(self) -> dict[str, Any]:
        files = [bin_path(self.prefix), idx_path(self.prefix), metadata_path(self.prefix)]
        return {
            "format": "kaiyuan-corpus",
            "version": 1,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "dtype": self._dtype.name,
            "max_token_id": self.max_token_id,
            "tokenizer": self._tokenizer,
            "scores": self._scores,
            "sources": self._sources,
            "skipped": {reason: count for reason, count in sorted(self.skipped.items()) if count},
            "files": {path.name: {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in files},
        }


def _write_index(file: BinaryIO, dtype: np.dtype[Any], lengths: array[int], document_indices: array[int]) -> None:
    code = next(code for code, known in DTYPE_CODES.items() if known == dtype)
    file.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(document_indices)))
    file.write(np.asarray(lengths, np.int32).astype("<i4", copy=False).tobytes())
    for pointers in _pointers(lengths, dtype.itemsize):
        file.write(pointers.tobytes())
    file.write(np.asarray(document_indices, np.int64).astype("<i8", copy=False).tobytes())


def _pointers(lengths: array[int], itemsize: int) -> Iterator[NDArray[np.int64]]:
    """Where each sequence starts in the `.bin`, in bytes, a part at a time to keep memory small."""
    end = 0
    for at in range(0, len(lengths), _INDEX_ROWS):
        sizes = np.asarray(lengths[at : at + _INDEX_ROWS], np.int64) * itemsize
        ends = end + np.cumsum(sizes)
        yield (ends - sizes).astype("<i8", copy=False)
        end = int(ends[-1])
