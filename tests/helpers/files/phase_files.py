"""Corpora and phases written byte by byte from the description of their formats, and read back without any cleverness.

Independent of the builder and of the reader: plain Python, one entry after another.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.files import write_sealed_json

CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
PADDING = 65535
MASK = 2**64 - 1


class Entry(NamedTuple):
    """A sequence, or a piece of one; in padding only `tokens` says anything."""

    dataset: int
    sequence: int
    first: int
    tokens: int


def write_pair(prefix: Path, sequences: Sequence[Sequence[int]], code: int = 8, order: Iterable[int] = ()) -> Path:
    """A `.bin/.idx` pair; `order` says how the sequences lie in the `.bin`."""
    dtype = np.dtype(CODES[code])
    order = list(order) or list(range(len(sequences)))
    raw, pointers = b"", [0] * len(sequences)
    for sequence in order:
        pointers[sequence] = len(raw)
        raw += np.array(sequences[sequence], dtype).tobytes()
    count = len(sequences)
    Path(f"{prefix}.bin").write_bytes(raw)
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, count, count + 1)
        + struct.pack(f"<{count}i", *map(len, sequences))
        + struct.pack(f"<{count}q", *pointers)
        + struct.pack(f"<{count + 1}q", *range(count + 1))
    )
    return prefix


def mix(x: int) -> int:
    """The step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def block_check(number: int, words: Iterable[int]) -> int:
    check = mix(number)
    for word in words:
        check = mix(check ^ word)
    return check


def write_phase(
    folder: Path, corpora: Mapping[str, Path], entries: Sequence[Entry], *, stride: int = 1024, packed: bool = False
) -> Path:
    """A phase folder, version 2. What an unpacked order names beside its corpora, wrongly, counts as the last one's."""
    padding = sum(entry.tokens for entry in entries if entry.dataset == PADDING)
    folder.mkdir(parents=True)
    order = [entry.dataset << 48 | entry.sequence for entry in entries]
    pieces = [entry.tokens << 32 | entry.first for entry in entries]
    before = [sum(entry.tokens for entry in entries[:at]) for at in range(0, len(entries), stride)]
    total = sum(entry.tokens for entry in entries)
    checks = [
        block_check(number, order[at : at + stride] + (pieces[at : at + stride] if packed else []))
        for number, at in enumerate(range(0, len(entries), stride))
    ]
    columns = {"order.bin": order, "tokens.bin": [*before, total], "checks.bin": checks}
    if packed:
        columns["pieces.bin"] = pieces
    for name, column in columns.items():
        (folder / name).write_bytes(struct.pack(f"<{len(column)}Q", *column))
    manifest = {
        "format": "kaiyuan-phase",
        "version": 2,
        "name": folder.name,
        "order": "shuffle",
        "seed": 0,
        "rank_by": "documents",
        "documents": sum(not packed or entry.dataset != PADDING for entry in entries),
        "tokens": total,
        "stride": stride,
        "packing": {"seq_length": 1, "padding_tokens": padding} if packed else None,
        "corpora": [
            _corpus(name, prefix, [entry for entry in entries if _owner(entry, len(corpora), packed) == number])
            for number, (name, prefix) in enumerate(corpora.items())
        ],
        "recipe": {},
        "files": {name: _seal(folder / name) for name in columns},
    }
    write_sealed_json(folder / "manifest.json", manifest)
    return folder


def _owner(entry: Entry, corpora: int, packed: bool) -> int:
    return entry.dataset if packed else min(entry.dataset, corpora - 1)


def _corpus(name: str, prefix: Path, own: Sequence[Entry]) -> dict:
    opened = IndexedCorpus(prefix)
    return {
        "name": name,
        "path": str(prefix.resolve()),
        "fingerprint": opened.fingerprint(),
        "sample": opened.sample_fingerprint(),
        "sequences": len(opened),
        "documents": len(own),
        "tokens": sum(entry.tokens for entry in own),
        "max_token_id": None,
    }


def _seal(path: Path) -> dict:
    raw = path.read_bytes()
    return {"bytes": len(raw), "checksum": f"xxh3:{xxhash.xxh3_128_hexdigest(raw)}"}


def read_slowly(corpora: Sequence[Sequence[Sequence[int]]], entries: Iterable[Entry]) -> tuple[list[int], list[int]]:
    """Tokens and marks of a phase, one entry after another."""
    tokens: list[int] = []
    marks: list[int] = []
    for dataset, sequence, first, count in entries:
        padding = dataset == PADDING
        tokens += [0] * count if padding else corpora[dataset][sequence][first : first + count]
        marks += [(2 if padding else 0) | (1 if at == 0 else 0) for at in range(count)]
    return tokens, marks
