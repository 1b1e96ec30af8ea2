"""Best-fit packing of a phase: its order, as built, becomes one of packs (csrc/curriculum/packing.h)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools import _curriculum
from data_tools.curriculum.profile import bucket_ends
from megatron_kaiyuan.data.phase import PADDING_DATASET, SEQUENCE_BITS, SEQUENCE_MASK

# Packs that the order of documents may be changed within: about one global batch of a large run, inside which order
# means nothing, and more of them save little (docs/data.md). A small phase keeps its order too: 3 % of it at most, but
# with fewer packs than 16 to choose from there is more padding than order is worth.
_MOST_WINDOW, _LEAST_WINDOW, _WINDOW_SHARE = 1024, 16, 32
# Documents whose lengths are gathered at a time.
_CHUNK = 1 << 20


class Packing(NamedTuple):
    """What a phase became."""

    seq_length: int
    packs: int
    padding_tokens: int
    window: int

    @property
    def tokens(self) -> int:
        """Positions of the stream, padding included."""
        return self.packs * self.seq_length

    @property
    def padding_share(self) -> float:
        return self.padding_tokens / self.tokens

    def as_json(self) -> dict[str, Any]:
        return {"seq_length": self.seq_length, "padding_tokens": self.padding_tokens, "window": self.window}

    def __str__(self) -> str:
        return f"{self.packs:,} packs of {self.seq_length:,}, {100 * self.padding_share:.2f} % padding of their tokens"


def packing_window(tokens: int, seq_length: int) -> int:
    """Packs of tokens that a document may be moved past, in a phase of so many tokens."""
    return min(_MOST_WINDOW, max(_LEAST_WINDOW, tokens // seq_length // _WINDOW_SHARE))


def pack_phase(
    folder: Path,
    lengths: Sequence[NDArray[np.int32]],
    seq_length: int,
    progress: Callable[[int], None] | None = None,
) -> Packing:
    """Replace order.bin, tokens.bin and checks.bin in a folder that is no phase yet by those of packs; add pieces.bin.

    Memory does not grow with the phase: the documents of a window of packs, and 16 bytes for each 1,024 entries.

    Args:
        lengths: of the sequences of each dataset, in the order of the dataset index.
        progress: called with how many documents were read since the last call.
    """
    unpacked = folder / "order.unpacked"
    os.replace(folder / "order.bin", unpacked)
    window = packing_window(int(np.fromfile(folder / "tokens.bin", "<u8")[-1]), seq_length)
    packed = _curriculum.PackedPhase(str(folder), seq_length, window)
    with open(unpacked, "rb") as file:
        while len(entries := np.fromfile(file, "<u8", _CHUNK)):
            packed.add(entries, _gather(entries, lengths))
            if progress:
                progress(len(entries))
    packed.finish()
    unpacked.unlink()
    return Packing(seq_length, packed.packs, packed.padding, window)


def packed_profile(profile: dict[str, Any], folder: Path, packing: Packing) -> dict[str, Any]:
    """The profile of a packed phase, from `profile` of its order before it was packed.

    Buckets are equal parts of the packed stream, padding included; the tokens that each dataset gives them are counted
    from the packs. Mean quantiles stay those of the same buckets of the order before, from which packing moves no
    document by more than its window.
    """
    datasets = profile["datasets"]
    ends = bucket_ends(packing.tokens, len(profile["tokens"]))
    given = _tokens_by_bucket(folder, len(datasets), np.array(ends))
    counted = {name: {**entry, "tokens": tokens} for (name, entry), tokens in zip(datasets.items(), given, strict=True)}
    return {**profile, "tokens": ends, "datasets": counted}


def _tokens_by_bucket(folder: Path, datasets: int, ends: NDArray[np.int64]) -> list[list[int]]:
    """Tokens of each dataset in each bucket of a packed phase [datasets, buckets]; padding is no one's."""
    given: NDArray[np.int64] = np.zeros((datasets, len(ends)), np.int64)
    position = 0
    with open(folder / "order.bin", "rb") as order, open(folder / "pieces.bin", "rb") as pieces:
        while len(entries := np.fromfile(order, "<u8", _CHUNK)):
            lengths = (np.fromfile(pieces, "<u8", len(entries)) >> np.uint64(32)).astype(np.int64)
            after = position + np.cumsum(lengths)
            # A piece is cut where buckets end inside it.
            cuts = np.union1d(after, ends[(ends > position) & (ends < after[-1])])
            owner = (entries >> np.uint64(SEQUENCE_BITS)).astype(np.int64)[np.searchsorted(after, cuts)]
            tokens = np.diff(cuts, prepend=position)
            ours = owner != PADDING_DATASET
            np.add.at(given, (owner[ours], np.searchsorted(ends, cuts[ours])), tokens[ours])
            position = int(after[-1])
    counted: list[list[int]] = given.tolist()
    return counted


def _gather(entries: NDArray[np.uint64], lengths: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    datasets = (entries >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
    sequences = entries & SEQUENCE_MASK
    gathered: NDArray[np.int32] = np.empty(len(entries), np.int32)
    for dataset in np.unique(datasets).tolist():
        rows = np.flatnonzero(datasets == dataset)
        gathered[rows] = lengths[dataset][sequences[rows]]
    return gathered
