from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SEQUENCE_BITS: int
PADDING_DATASET: int
BLOCK_ENTRIES: int

class Damage(Exception): ...

def map_file(path: bytes) -> NDArray[np.uint8]: ...

class Corpus:
    def __init__(self, index: NDArray[np.uint8], tokens: NDArray[np.uint8], sequences: int, code: int) -> None: ...

class Phase:
    def __init__(
        self,
        order: NDArray[np.uint64],
        tokens: NDArray[np.uint64],
        checks: NDArray[np.uint64],
        pieces: NDArray[np.uint64] | None,
        stride: int,
        corpora: Sequence[Corpus],
    ) -> None: ...
    @property
    def blocks(self) -> int: ...
    def check(self, first: int, last: int, lengths: bool) -> None: ...
    def locate(self, offset: int) -> tuple[int, int]: ...

class Stream:
    def __init__(self, phases: Sequence[Phase], vocab_size: int) -> None: ...
    def read(
        self, positions: NDArray[np.int64], count: int, starts: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]: ...
