"""Best-fit packing of a phase: its order, as built, becomes one of packs (csrc/packing.h)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools import _curriculum
from megatron_kaiyuan.data.phase import SEQUENCE_BITS, SEQUENCE_MASK

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
        return f"{self.packs:,} packs of {self.seq_length:,}, {100 * self.padding_share:.2f} % padding"


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
        progress: told how many documents were read since it was last told.
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


def stretch_profile(profile: dict[str, Any], packing: Packing) -> dict[str, Any]:
    """A profile of the order before it was packed, its bucket edges moved to where packing put them on average."""
    *_, before = profile["tokens"]
    return {**profile, "tokens": [edge * packing.tokens // before for edge in profile["tokens"]]}


def _gather(entries: NDArray[np.uint64], lengths: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    datasets = (entries >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
    sequences = entries & SEQUENCE_MASK
    gathered: NDArray[np.int32] = np.empty(len(entries), np.int32)
    for dataset in np.unique(datasets).tolist():
        rows = np.flatnonzero(datasets == dataset)
        gathered[rows] = lengths[dataset][sequences[rows]]
    return gathered
