import numpy as np
from numpy.typing import NDArray

RULE_MEASURES: list[str]
LETTER: int
PUNCTUATION: int
SPACE: int

class LinearModel:
    def __init__(self, path: bytes) -> None: ...
    @property
    def labels(self) -> list[bytes]: ...
    def probabilities(self, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> NDArray[np.float64]: ...

def rule_measures(classes: bytes, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> NDArray[np.float64]: ...
