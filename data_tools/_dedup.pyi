from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# (path, byte of the file where the run begins, entries, ordinal of the document of row 0)
Run: TypeAlias = tuple[bytes, int, int, int]

unicode_version: str

def vector_names() -> list[str]: ...
def use_vectors(name: str) -> None: ...

class Signer:
    def __init__(
        self,
        multipliers: NDArray[np.uint32],
        increments: NDArray[np.uint32],
        ngram: int,
        shingles: str = "auto",
        keeps_numbers: bool = False,
    ) -> None: ...
    def sign(
        self, offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]: ...
    def shingle_sets(
        self, offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]: ...

class KaiyuanSigner:
    def __init__(
        self,
        multipliers: NDArray[np.uint64],
        increments: NDArray[np.uint64],
        ngram: int,
        shingles: str = "auto",
        keeps_numbers: bool = False,
    ) -> None: ...
    def sign(
        self, offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64]]: ...
    def shingle_sets(
        self, offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]: ...

def band_keys(signatures: NDArray[np.uint32] | NDArray[np.uint64], bands: int, rows: int) -> NDArray[np.uint64]: ...
def sort_run(keys: NDArray[np.uint64], rows: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]: ...
def group_pairs(
    runs: Sequence[Run], output: bytes, memory: int = ..., stars: bool = ..., earlier: int = ..., omitted: bytes = ...
) -> tuple[int, int, int]: ...
def unique_pairs(inputs: Sequence[bytes], output: bytes, scratch: bytes, memory: int = ...) -> int: ...
def jaccard(
    pairs: NDArray[np.int64], offsets: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> NDArray[np.float64]: ...

class Components:
    def __init__(self, nodes: int) -> None: ...
    @property
    def nodes(self) -> int: ...
    def add(self, edges: NDArray[np.uint64]) -> None: ...
    def labels(self, first: int, last: int) -> NDArray[np.uint64]: ...
