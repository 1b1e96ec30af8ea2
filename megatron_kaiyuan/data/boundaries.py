"""Where documents begin in a sample, and what follows for positions, attention and loss.

The rules are those of Megatron's `get_ltor_masks_and_position_ids`, with true document starts in the place of an
end-of-document id. Array suffixes: b samples, s tokens of a sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def document_numbers(starts_bs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of the document that each token belongs to, counted within its sample, int64[b, s]."""
    return np.cumsum(starts_bs, axis=1, dtype=np.int64)


def position_ids(starts_bs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance of each token from the start of its document, or of the sample that cut it, int64[b, s]."""
    index_s = np.arange(starts_bs.shape[1])
    return index_s - np.maximum.accumulate(np.where(starts_bs, index_s, 0), axis=1)
