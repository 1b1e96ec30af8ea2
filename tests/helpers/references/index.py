"""The `.idx` format in plain Python, slow and obvious, written from its description."""

from __future__ import annotations

import struct
from itertools import accumulate

ITEM_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}


def index_bytes(lengths: list[int], code: int) -> bytes:
    """The index of documents in order; a length of 0 is an empty document, without a sequence."""
    kept = [length for length in lengths if length]
    ends = [0, *accumulate(kept)]
    documents = [0, *accumulate(int(length > 0) for length in lengths)]
    return laid_out(kept, [end * ITEM_SIZES[code] for end in ends[:-1]], documents, code)


def laid_out(lengths: list[int], pointers: list[int], documents: list[int], code: int) -> bytes:
    return (
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(documents)}q", *documents)
    )


def parse(raw: bytes) -> tuple[int, list[int], list[int], list[int]] | None:
    """Code, lengths, pointers and document indices, or None when the file is no index of tokens."""
    if len(raw) < 34 or raw[:9] != b"MMIDIDX\0\0":
        return None
    version, code, sequences, documents = struct.unpack("<QBQQ", raw[9:34])
    if version != 1 or code not in ITEM_SIZES or len(raw) != 34 + 12 * sequences + 8 * documents:
        return None
    pointers_at = 34 + 4 * sequences
    documents_at = pointers_at + 8 * sequences
    return (
        code,
        list(struct.unpack(f"<{sequences}i", raw[34:pointers_at])),
        list(struct.unpack(f"<{sequences}q", raw[pointers_at:documents_at])),
        list(struct.unpack(f"<{documents}q", raw[documents_at:])),
    )


def is_sound(raw: bytes, bin_size: int) -> bool:
    """Whether every sequence lies in the `.bin` and the document indices rise from 0 to the last."""
    parsed = parse(raw)
    if parsed is None:
        return False
    code, lengths, pointers, documents = parsed
    size = ITEM_SIZES[code]
    return (
        all(
            length >= 0 and pointer >= 0 and pointer % size == 0 and pointer + length * size <= bin_size
            for length, pointer in zip(lengths, pointers, strict=True)
        )
        and documents[:1] == [0]
        and documents[-1] == len(lengths)
        and documents == sorted(documents)
    )


def is_contiguous(raw: bytes, bin_size: int) -> bool:
    """Whether a sound index is the one that a writer gives: sequence after sequence, to the end of the `.bin`."""
    parsed = parse(raw)
    assert parsed is not None
    code, lengths, pointers, _ = parsed
    ends = [0, *accumulate(length * ITEM_SIZES[code] for length in lengths)]
    return [*pointers, bin_size] == ends
