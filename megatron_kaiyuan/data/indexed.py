"""Megatron's `.bin/.idx` pair (version 1), memory-mapped and fully checked before the first token is read.

Layout of the `.idx`, little-endian, without padding: 9 bytes magic; u64 version; u8 dtype code; u64 S sequences;
u64 D document indices; S x i32 lengths in tokens; S x i64 pointers in bytes into the `.bin`; D x i64 document
indices that rise from 0 to S. The `.bin` is the tokens and nothing else. Megatron's own reader opens a damaged
pair and fails, or reads garbage, much later; this one refuses it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in ((1, "u1"), (2, "i1"), (3, "i2"), (4, "i4"), (5, "i8"), (8, "u2"))
}
_FLOAT_CODES = (6, 7)
# Sequences checked at a time: keeps the temporaries of the check small on an index of billions.
_CHECK_ROWS = 1 << 22
_REMEDY = "make the corpus again, or copy it again from where it came"


class IndexHeader(NamedTuple):
    """What the first 34 bytes of an `.idx` say."""

    dtype: np.dtype[Any]
    sequences: int
    document_indices: int

    @property
    def file_size(self) -> int:
        """Bytes that the whole `.idx` must have."""
        return HEADER.size + 12 * self.sequences + 8 * self.document_indices


def bin_path(prefix: Path) -> Path:
    """The token file of a corpus. The prefix may hold dots, so no suffix is replaced."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    """The index of a corpus."""
    return prefix.with_name(f"{prefix.name}.idx")


class IndexedCorpus:
    """One corpus, read-only. Safe to share with forked processes.

    Attributes:
        prefix: path of the pair without `.bin` and `.idx`.
        dtype: type of a stored token.
        lengths: int32[sequences], tokens of each sequence.
        pointers: int64[sequences], where each sequence starts in the `.bin`, in bytes.
        document_indices: int64[documents + 1], first sequence of each document, then the number of sequences.

    Raises:
        UserError: a file is missing, or its structure is damaged; the message names the file.
    """

    def __init__(self, prefix: Path):
        self.prefix = Path(prefix)
        index, tokens = idx_path(self.prefix), bin_path(self.prefix)
        header = _read_header(index)
        self.dtype = header.dtype
        raw = _map(index)
        pointers_at = HEADER.size + 4 * header.sequences
        documents_at = pointers_at + 8 * header.sequences
        self.lengths: NDArray[np.int32] = np.frombuffer(raw, "<i4", header.sequences, HEADER.size)
        self.pointers: NDArray[np.int64] = np.frombuffer(raw, "<i8", header.sequences, pointers_at)
        self.document_indices: NDArray[np.int64] = np.frombuffer(raw, "<i8", header.document_indices, documents_at)
        _check_documents(index, self.document_indices, header.sequences)
        self._bytes = _map(tokens)
        self.num_tokens = _check_sequences(self, index, tokens, self._bytes.size)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"IndexedCorpus({str(self.prefix)!r}, {len(self)} sequences, {self.num_tokens} tokens of {self.dtype})"

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Tokens [start, stop) of a sequence as a read-only view on the map, dtype `self.dtype`.

        Offsets follow Python's slices: they may be negative or beyond the end.
        """
        start, stop, _ = slice(start, stop).indices(int(self.lengths[sequence]))
        offset = int(self.pointers[sequence]) + start * self.dtype.itemsize
        return np.frombuffer(self._bytes, self.dtype, max(stop - start, 0), offset)

    def fingerprint(self) -> str:
        """Checksum of the `.idx` and size of the `.bin`; needs no manifest, so stock Megatron corpora have one too."""
        return f"{checksum(idx_path(self.prefix))}+{self._bytes.size}"


def map_lengths(index: Path) -> NDArray[np.int32]:
    """The lengths of an `.idx`, int32[sequences], memory-mapped; for who needs them alone, without the `.bin`.

    Raises:
        UserError: the header is damaged, or its file has another size than it needs.
    """
    header = _read_header(index)
    return np.frombuffer(_map(index), "<i4", header.sequences, HEADER.size)


def _read_header(path: Path) -> IndexHeader:
    try:
        # A pipe would be waited for, for ever.
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; give the prefix of a .bin/.idx pair")
        with open(path, "rb") as file:
            raw = file.read(HEADER.size)
    except FileNotFoundError as error:
        raise UserError(f"{path}: corpus index not found; give the prefix of a .bin/.idx pair") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not raw.startswith(MAGIC):
        raise UserError(f"{path}: does not start with Megatron's index magic; it is no .idx file, {_REMEDY}")
    size = path.stat().st_size
    if size < HEADER.size:
        raise UserError(f"{path}: truncated in its header ({size} of {HEADER.size} bytes); {_REMEDY}")
    _, version, code, sequences, document_indices = HEADER.unpack(raw)
    if version != VERSION:
        raise UserError(f"{path}: index version {version}, but only {VERSION} can be read; {_REMEDY}")
    if code in _FLOAT_CODES:
        raise UserError(f"{path}: holds floating-point values (dtype code {code}), not tokens; name a token corpus")
    if code not in DTYPE_CODES:
        raise UserError(f"{path}: unknown dtype code {code}; {_REMEDY}")
    header = IndexHeader(DTYPE_CODES[code], sequences, document_indices)
    _check_index_size(path, header, size)
    return header


def _check_index_size(path: Path, header: IndexHeader, size: int) -> None:
    expected = header.file_size
    if size < expected:
        raise UserError(f"{path}: truncated, has {size} bytes where its header needs {expected}; {_REMEDY}")
    if size == expected + header.sequences and header.sequences:
        raise UserError(f"{path}: carries a mode for each sequence (multimodal); only text corpora can be read")
    if size > expected:
        raise UserError(f"{path}: has {size - expected} trailing bytes after the index; {_REMEDY}")


def _map(path: Path) -> NDArray[np.uint8]:
    """All bytes of a file as a read-only map; an empty file cannot be mapped and gives an empty array."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; copy both files of the pair")
        if path.stat().st_size == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found, although its .idx is there; copy both files of the pair") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _check_documents(path: Path, document_indices: NDArray[np.int64], sequences: int) -> None:
    if not len(document_indices) or document_indices[0] != 0 or document_indices[-1] != sequences:
        raise UserError(f"{path}: document indices must go from 0 to {sequences}; {_REMEDY}")
    for at in range(0, len(document_indices), _CHECK_ROWS):
        part = document_indices[at : at + _CHECK_ROWS + 1]
        falling = part[1:] < part[:-1]
        if falling.any():
            row = at + int(falling.argmax()) + 1
            raise UserError(f"{path}: document index {row} is below the one before it; {_REMEDY}")


def _check_sequences(corpus: IndexedCorpus, index: Path, tokens: Path, size: int) -> int:
    """Check that each sequence lies inside the `.bin`; return the total number of tokens."""
    total, itemsize = 0, corpus.dtype.itemsize
    for at in range(0, len(corpus), _CHECK_ROWS):
        lengths = corpus.lengths[at : at + _CHECK_ROWS].astype(np.int64)
        pointers = corpus.pointers[at : at + _CHECK_ROWS]
        # A subtraction on the right side: a pointer near 2^63 would overflow a sum on the left.
        wrong = (lengths < 0) | (pointers < 0) | (pointers % itemsize != 0)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{index}: sequence {at + row} has length {lengths[row]} and pointer {pointers[row]}, "
                f"which is impossible; {_REMEDY}"
            )
        outside = pointers > size - lengths * itemsize
        if outside.any():
            row = int(outside.argmax())
            raise UserError(
                f"{tokens}: truncated or of another corpus: has {size} bytes, but sequence {at + row} of its .idx "
                f"holds {lengths[row] * itemsize} bytes from {pointers[row]}; {_REMEDY}"
            )
        total += int(lengths.sum())
    return total
