from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Sequences: TypeAlias = NDArray[np.uint64]
Scores: TypeAlias = NDArray[np.float64] | None
Copies: TypeAlias = NDArray[np.uint32] | None

def order(
    datasets: Sequence[tuple[str, Sequences, Scores, Copies]],
    *,
    shuffle: bool,
    seed: int,
    perturb: float = 0.0,
    threads: int = 1,
) -> NDArray[np.uint64]: ...
def select(dataset: str, scores: Scores, size: int, count: int, seed: int) -> Sequences: ...
def copies(sequences: Sequences, repeat: float, seed: int) -> NDArray[np.uint32]: ...
