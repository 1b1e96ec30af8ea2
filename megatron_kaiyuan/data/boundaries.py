"""Where documents begin in a sample, and what follows for positions, attention and loss.

The rules are those of Megatron's `get_ltor_masks_and_position_ids`, with true document starts in the place of an
end-of-document id. Array suffixes: b samples, s tokens of a sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.data.stream import TokenStream


def document_numbers(starts_bs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of the document that each token belongs to, counted within its sample, int64[b, s]."""
    return np.cumsum(starts_bs, axis=1, dtype=np.int64)


def position_ids(starts_bs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance of each token from the start of its document, or of the sample that cut it, int64[b, s]."""
    index_s = np.arange(starts_bs.shape[1])
    return index_s - np.maximum.accumulate(np.where(starts_bs, index_s, 0), axis=1)


def read_batch(
    stream: TokenStream, positions: NDArray[np.int64], count: int, starts: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]:
    """Tokens [n, count] from each position, and with `starts` marks: bit 0 says that a document begins there."""
    tokens = np.stack([stream.read(position, count) for position in positions.tolist()])
    if not starts:
        return tokens, None
    return tokens, np.stack([_marks(stream, position, count) for position in positions.tolist()])


def _marks(stream: TokenStream, position: int, count: int) -> NDArray[np.uint8]:
    marks: NDArray[np.uint8] = np.zeros(count, np.uint8)
    at = 0
    while at < count:
        index, offset = stream.phase_at(position + at)
        phase = stream.phases[index]
        number, within = phase.locate(offset)
        dataset, sequence = phase.document(number)
        if within == 0:
            marks[at] = 1
        at += int(phase.corpora[dataset].lengths[sequence]) - within
    return marks
