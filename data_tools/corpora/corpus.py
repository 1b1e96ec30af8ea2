"""Writing a corpus: Megatron's `.bin/.idx` pair, one metadata row a sequence, and the manifest that seals them.

The pair is byte for byte what megatron.core's IndexedDatasetBuilder writes for the same documents.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import ArrayLike, NDArray

from data_tools import _index
from data_tools.corpora.corpus_files import (
    FORMAT,
    VERSION,
    NewCorpus,
    manifest_path,
    replace_corpus,
    sealed_paths,
    token_dtype,
    write_errors,
)
from data_tools.corpora.sidecar import SidecarWriter, sidecar_schema
from megatron_kaiyuan.data.indexed import DTYPE_CODES
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

__all__ = ["CorpusWriter", "Documents", "manifest_path", "token_dtype"]

_INT32_MAX = 2**31 - 1


@dataclass
class Documents:
    """A batch of documents; entry i of each list or array belongs to document i.

    Attributes:
        tokens: the ids of all documents, one after another.
        lengths: tokens of each document; 0 stands for an empty one, which gets no sequence and no metadata row.
        text_bytes: size of each text in UTF-8.
        domains, sources: where each text is from; "" when unknown.
        scores: one list of numbers for each score name; NaN is a missing score, and null in the metadata.
        columns: one list of texts, or None where there is none, for each further metadata column.
    """

    tokens: NDArray[Any]
    lengths: Sequence[int] | NDArray[np.integer[Any]]
    text_bytes: Sequence[int] | NDArray[np.integer[Any]]
    domains: Sequence[str]
    sources: Sequence[str]
    scores: Mapping[str, Sequence[float] | NDArray[np.float64]] = field(default_factory=dict)
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


class CorpusWriter:
    """Streams documents into a corpus; memory does not grow with it.

    A context manager: the files appear under their names when the block ends well, the manifest last. After an
    exception nothing of the new corpus is left, and an older one stays as it was.

    Args:
        prefix: path without suffix.
        tokenizer: `path`, `fingerprint`, `vocab_size`, `eod_id`, for the manifest.
        scores: names of the score columns.
        sources: input files, for the manifest.
        columns: names of further metadata columns, of text.
        threads: for the index; they change the speed, never the bytes.

    Attributes:
        skipped: documents that were left out, by reason; the caller adds its own reasons.
        tokens, max_token_id: what was written so far (max_token_id is -1 before the first token).
    """

    def __init__(
        self,
        prefix: Path,
        tokenizer: Mapping[str, Any],
        scores: Sequence[str] = (),
        sources: Sequence[str] = (),
        columns: Sequence[str] = (),
        threads: int = 1,
    ):
        self.prefix = Path(prefix)
        self.skipped: Counter[str] = Counter()
        self.tokens, self.max_token_id = 0, -1
        self._tokenizer, self._scores, self._sources = dict(tokenizer), list(scores), list(sources)
        self._columns, self._threads = list(columns), threads
        self._dtype = token_dtype(self._tokenizer["vocab_size"])
        self._schema = sidecar_schema(self._scores, self._columns)
        self._digest = xxhash.xxh3_128()
        self._stack = ExitStack()

    @property
    def sequences(self) -> int:
        """Documents written so far that were not empty."""
        return self._index.sequences

    def __enter__(self) -> CorpusWriter:
        with ExitStack() as stack:
            self._new: NewCorpus = stack.enter_context(replace_corpus(self.prefix))
            with write_errors(self.prefix):
                self._bin: BinaryIO = stack.enter_context(open(self._new.bin, "wb"))
                self._index = _index.IndexWriter(os.fsencode(self._new.index), dtype_code(self._dtype))
                self._sidecar = stack.enter_context(SidecarWriter(self._new.metadata, self._schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            with write_errors(self.prefix):
                self._sidecar.finish()
                self._bin.close()
                self._index.finish(self._threads)
            self._new.manifest = self._manifest()

    def add(self, documents: Documents) -> None:
        """Append a batch.

        Raises:
            UserError: an id is negative or not below the tokenizer's vocabulary size, a document or a text is
                longer than 2^31 - 1 tokens or bytes, or the disk is full.
        """
        tokens = np.ascontiguousarray(documents.tokens)
        lengths = self._int32(documents.lengths, "tokens")
        if int(lengths.sum(dtype=np.int64)) != tokens.size:
            raise ValueError(f"lengths add up to {lengths.sum(dtype=np.int64)}, not to the {tokens.size} tokens")
        self._check_ids(tokens)
        rows = self._rows(documents, lengths)
        with write_errors(self.prefix):
            if tokens.size:
                stored = memoryview(tokens.astype(self._dtype, copy=False)).cast("B")
                self._digest.update(stored)
                self._bin.write(stored)
            self._index.add(lengths)
            self._sidecar.write(rows)
        self.tokens += tokens.size
        self.skipped["empty text"] += len(lengths) - len(rows)

    def _check_ids(self, tokens: NDArray[Any]) -> None:
        if not tokens.size:
            return
        largest = int(tokens.max())
        smallest = 0 if tokens.dtype.kind == "u" else int(tokens.min())
        if smallest < 0 or largest >= self._tokenizer["vocab_size"]:
            wrong = smallest if smallest < 0 else largest
            raise UserError(
                f"{self.prefix}: token id {wrong} is outside the vocabulary of {self._tokenizer['vocab_size']}; "
                "use the tokenizer that made these ids"
            )
        self.max_token_id = max(self.max_token_id, largest)

    def _int32(self, values: Sequence[int] | NDArray[np.integer[Any]], what: str) -> NDArray[np.int32]:
        wide = np.asarray(values, np.int64)
        if wide.size and not 0 <= int(wide.min()) <= int(wide.max()) <= _INT32_MAX:
            raise UserError(
                f"{self.prefix}: a document of {int(wide.max()):,} {what} does not fit a corpus, whose limit is "
                f"{_INT32_MAX:,}; split it, or leave it out"
            )
        return wide.astype(np.int32)

    def _rows(self, documents: Documents, lengths: NDArray[np.int32]) -> pa.Table:
        values: list[ArrayLike] = [lengths, self._int32(documents.text_bytes, "bytes")]
        values += [documents.domains, documents.sources]
        values += [documents.columns[name] for name in self._columns]
        values += [documents.scores[name] for name in self._scores]
        arrays = [
            # Only NaN is turned into null by this, and only scores are numbers that can be NaN.
            pa.array(column, kind, from_pandas=pa.types.is_floating(kind))
            for column, kind in zip(values, self._schema.types, strict=True)
        ]
        rows = pa.Table.from_arrays(arrays, schema=self._schema)
        kept = lengths > 0
        return rows if kept.all() else rows.filter(pa.array(kept))

    def _manifest(self) -> dict[str, Any]:
        return manifest_of(
            self._new,
            {
                "sequences": self.sequences,
                "tokens": self.tokens,
                "dtype": self._dtype.name,
                "max_token_id": self.max_token_id,
                "tokenizer": self._tokenizer,
                "scores": self._scores,
                "columns": self._columns,
                "sources": self._sources,
                "skipped": self.skipped,
            },
            f"xxh3:{self._digest.hexdigest()}",
        )


def dtype_code(dtype: np.dtype[Any]) -> int:
    """Megatron's number for a token type."""
    return next(code for code, known in DTYPE_CODES.items() if known == dtype)


def manifest_of(new: NewCorpus, content: dict[str, Any], bin_checksum: str) -> dict[str, Any]:
    """The manifest of files that are still under their temporary names.

    Args:
        bin_checksum: of the bytes as they were written; whoever reads the `.bin` later sees what the disk changed.
    """
    checksums = [bin_checksum, checksum(new.index), checksum(new.metadata)]
    skipped = {reason: count for reason, count in sorted(content["skipped"].items()) if count}
    files = {
        final.name: {"bytes": temporary.stat().st_size, "checksum": digest}
        for final, temporary, digest in zip(sealed_paths(new.prefix), new.paths, checksums, strict=True)
    }
    return {"format": FORMAT, "version": VERSION, **content, "skipped": skipped, "files": files}
