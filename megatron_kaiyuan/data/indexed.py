"""Megatron's `.bin/.idx` pair (version 1), memory-mapped and checked.

Layout of the `.idx`, little-endian, without padding: 9 bytes magic; u64 version; u8 dtype code; u64 S sequences;
u64 D document indices; S x i32 lengths in tokens; S x i64 pointers in bytes into the `.bin`; D x i64 document
indices that rise from 0 to S. The `.bin` is the tokens and nothing else. Megatron's own reader opens a damaged
pair and fails, or reads garbage, much later; this one refuses it.

Opening takes the same time for any size: headers, file sizes and the last rows. The check of every row is a step of
its own, which the ranks of a job share.
"""

from __future__ import annotations

import os
import struct
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_kaiyuan.data import _reader
from megatron_kaiyuan.errors import UserError, system_advice
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.nearby import near_corpus

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
# What a sample of a file is: so many blocks of so many bytes, evenly placed, the first and the last among them.
_SAMPLE_BLOCKS, _SAMPLE_BYTES = 16, 4096
_REMEDY = "make the corpus again, or copy it again from where it came"


class IndexHeader(NamedTuple):
    """What the first 34 bytes of an `.idx` say."""

    code: int
    sequences: int
    document_indices: int

    @property
    def file_size(self) -> int:
        """Bytes that the whole `.idx` must have."""
        return HEADER.size + 12 * self.sequences + 8 * self.document_indices


def bin_path(prefix: Path) -> Path:
    """The token file of a corpus. The prefix may hold dots, so no suffix is replaced."""
    return beside(prefix, ".bin")


def idx_path(prefix: Path) -> Path:
    """The index of a corpus."""
    return beside(prefix, ".idx")


def beside(prefix: Path, suffix: str) -> Path:
    """A file of a corpus.

    Raises:
        UserError: the prefix is a folder like "." or "/", which has no name that a suffix could follow.
    """
    if not prefix.name:
        raise UserError(f"{prefix}: names no corpus; give the prefix of its files, without .bin or .idx")
    return prefix.with_name(f"{prefix.name}{suffix}")


class IndexedCorpus:
    """One corpus, read-only. Safe to share with forked processes.

    Args:
        prefix: path of the pair without `.bin` and `.idx`.
        check: (r, w): also check the r-th of w parts of the rows, see `check`; all of them by default. None: no row,
            so that opening takes the same time for any size. What is read is checked in any case.

    Attributes:
        prefix: as given.
        dtype: type of a stored token; code: its number in the `.idx`.
        lengths: int32[sequences], tokens of each sequence.
        pointers: int64[sequences], where each sequence starts in the `.bin`, in bytes.
        document_indices: int64[documents + 1], first sequence of each document, then the number of sequences.
        index_bytes, token_bytes: uint8, the two files as they are mapped.

    Raises:
        UserError: a file is missing, or its structure is damaged; the message names the file.
    """

    def __init__(self, prefix: Path, *, check: tuple[int, int] | None = (0, 1)):
        self.prefix = Path(prefix)
        index = idx_path(self.prefix)
        header = _read_header(index)
        self.code, self.dtype = header.code, DTYPE_CODES[header.code]
        self.index_bytes = raw = _map(index)
        pointers_at = HEADER.size + 4 * header.sequences
        documents_at = pointers_at + 8 * header.sequences
        self.lengths: NDArray[np.int32] = np.frombuffer(raw, "<i4", header.sequences, HEADER.size)
        self.pointers: NDArray[np.int64] = np.frombuffer(raw, "<i8", header.sequences, pointers_at)
        self.document_indices: NDArray[np.int64] = np.frombuffer(raw, "<i8", header.document_indices, documents_at)
        _check_document_ends(index, self.document_indices, header.sequences)
        self.token_bytes = _map(bin_path(self.prefix))
        self._checked: set[tuple[int, int]] = set()
        _check_sequences(self, max(len(self) - 1, 0), len(self))
        if check is not None:
            self.check(*check)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"IndexedCorpus({str(self.prefix)!r}, {len(self)} sequences of {self.dtype})"

    def check(self, part: int = 0, parts: int = 1) -> None:
        """Check every length, pointer and document index of one part of the rows; a second time it does nothing.

        Raises:
            UserError: the first row that is wrong.
        """
        if (part, parts) in self._checked:
            return
        _check_sequences(self, *share(len(self), part, parts))
        _check_documents(idx_path(self.prefix), self.document_indices, *share(len(self.document_indices), part, parts))
        self._checked.add((part, parts))

    @cached_property
    def reader(self) -> _reader.Corpus:
        """The same maps for the reader of phases."""
        return _reader.Corpus(self.index_bytes, self.token_bytes, len(self), self.code)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all sequences; reads every length once."""
        rows = range(0, len(self), _CHECK_ROWS)
        return sum(int(self.lengths[at : at + _CHECK_ROWS].sum(dtype=np.int64)) for at in rows)

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Tokens [start, stop) of a sequence as a read-only view on the map, dtype `self.dtype`.

        Offsets follow Python's slices: they may be negative or beyond the end.

        Raises:
            UserError: the sequence does not lie inside the `.bin`.
        """
        row = range(len(self))[sequence]
        _check_sequences(self, row, row + 1)
        start, stop, _ = slice(start, stop).indices(int(self.lengths[row]))
        offset = int(self.pointers[row]) + start * self.dtype.itemsize
        return np.frombuffer(self.token_bytes, self.dtype, max(stop - start, 0), offset)

    def fingerprint(self) -> str:
        """Checksum of the `.idx` and size of the `.bin`; needs no manifest, so stock Megatron corpora have one too."""
        return f"{checksum(idx_path(self.prefix))}+{self.token_bytes.size}"

    def sample_fingerprint(self) -> str:
        """Checksum of the sizes of both files and of 64 KiB of each, evenly spread.

        Takes the same time for any size, so that every rank can compare it at every start. It finds a corpus that was
        made again or copied in part, not every flipped bit.
        """
        digest = xxhash.xxh3_128()
        for raw in (self.index_bytes, self.token_bytes):
            digest.update(raw.size.to_bytes(8, "little"))
            last = max(raw.size - _SAMPLE_BYTES, 0)
            for at in sorted({last * block // (_SAMPLE_BLOCKS - 1) for block in range(_SAMPLE_BLOCKS)}):
                digest.update(raw[at : at + _SAMPLE_BYTES])
        return f"xxh3:{digest.hexdigest()}"


def map_file(path: Path) -> NDArray[np.uint8]:
    """All bytes of a file, read-only, which takes no open file: runs of thousands of corpora have few of these.

    Raises:
        OSError: the system refuses.
    """
    return _reader.map_file(os.fsencode(path))


def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """The rows [first, last) that fall to one of so many parts of `count` rows."""
    return count * part // parts, count * (part + 1) // parts


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
        near = near_corpus(path.with_suffix(""))
        raise UserError(f"{path}: corpus index not found; give the prefix of a .bin/.idx pair{near}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {system_advice(error)}") from error
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
    header = IndexHeader(code, sequences, document_indices)
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
    """All bytes of a file as a read-only map; an empty array where it has none."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; copy both files of the pair")
        return map_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found, although its .idx is there; copy both files of the pair") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {system_advice(error)}") from error


def _check_document_ends(path: Path, document_indices: NDArray[np.int64], sequences: int) -> None:
    if not len(document_indices) or document_indices[0] != 0 or document_indices[-1] != sequences:
        raise UserError(f"{path}: document indices must go from 0 to {sequences}; {_REMEDY}")


def _check_documents(path: Path, document_indices: NDArray[np.int64], first: int, last: int) -> None:
    """Check that none of the indices [first, last) is above the next one."""
    for at in range(first, last, _CHECK_ROWS):
        part = document_indices[at : min(at + _CHECK_ROWS, last) + 1]
        falling = part[1:] < part[:-1]
        if falling.any():
            row = at + int(falling.argmax()) + 1
            raise UserError(f"{path}: document index {row} is below the one before it; {_REMEDY}")


def _check_sequences(corpus: IndexedCorpus, first: int, last: int) -> None:
    """Check that each of the sequences [first, last) lies inside the `.bin`."""
    itemsize, size = corpus.dtype.itemsize, corpus.token_bytes.size
    for at in range(first, last, _CHECK_ROWS):
        lengths = corpus.lengths[at : min(at + _CHECK_ROWS, last)].astype(np.int64)
        pointers = corpus.pointers[at : min(at + _CHECK_ROWS, last)]
        # A subtraction on the right side: a pointer near 2^63 would overflow a sum on the left.
        wrong = (lengths < 0) | (pointers < 0) | (pointers % itemsize != 0)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{idx_path(corpus.prefix)}: sequence {at + row} has length {lengths[row]} and pointer "
                f"{pointers[row]}, which is impossible; {_REMEDY}"
            )
        outside = pointers > size - lengths * itemsize
        if outside.any():
            row = int(outside.argmax())
            raise UserError(
                f"{bin_path(corpus.prefix)}: truncated or of another corpus: has {size} bytes, but sequence {at + row} "
                f"of its .idx holds {lengths[row] * itemsize} bytes from {pointers[row]}; {_REMEDY}"
            )
