"""The weights of averages of checkpoints, and their sum.

The equal mean of the last 8 is the last step of the Kaiyuan recipe (arXiv 2512.07612).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch

Tensors = dict[str, torch.Tensor]
_BLOCK = 1 << 22


def ema_weights(positions: Sequence[float], decay: float, decay_per: float = 1.0) -> list[float]:
    """Return the weights of an exponential moving average: decay^(age / decay_per), normalised to the sum 1.

    The average has no start value, so that the first checkpoint weighs no more than its age says.

    Args:
        positions: of the checkpoints, ascending; the age of one is its distance from the last.
        decay: between 0 and 1.
        decay_per: the distance over which a weight falls by `decay`.
    """
    shares = [decay ** ((positions[-1] - position) / decay_per) for position in positions]
    return [share / sum(shares) for share in shares]


def one_minus_sqrt_weights(positions: Sequence[float]) -> list[float]:
    """Return the weights that simulate a decay of the learning rate by 1 - sqrt from the first checkpoint to the last.

    Of checkpoints 0..k the update between i - 1 and i counts with w_i where c_k = w_k, c_j = w_j - w_{j+1} and
    c_0 = 1 - w_1 (WSM, arXiv 2507.17634, theorem on merging and decay). w_i is the mean of 1 - sqrt(x) over the
    update's interval [a, b] of the way x from the first checkpoint to the last: 1 - 2/3 (b^1.5 - a^1.5) / (b - a).

    Args:
        positions: of the checkpoints, ascending.
    """
    length = positions[-1] - positions[0]
    way = [(position - positions[0]) / length for position in positions] if length else [0.0]
    decays = [1 - 2 / 3 * (b**1.5 - a**1.5) / (b - a) for a, b in itertools.pairwise(way)]
    return [before - after for before, after in itertools.pairwise([1.0, *decays, 0.0])]


def weighted_mean(checkpoints: Iterable[Tensors], weights: Sequence[float]) -> Tensors:
    """Return the mean of each tensor over checkpoints, summed in FP64, in FP32.

    Args:
        checkpoints: tensors under the same names and shapes; read one at a time, and emptied, which frees them.
        weights: one for each checkpoint; of any positive sum.
    """
    total: Tensors = {}
    for tensors, weight in zip(checkpoints, weights, strict=True):
        while tensors:
            name, tensor = tensors.popitem()
            if name not in total:
                # To which a zero of either sign is added without a change.
                total[name] = torch.full(tensor.shape, -0.0, dtype=torch.float64)
            _add(total[name].view(-1), tensor.reshape(-1), weight)
            del tensor
    return {name: total.pop(name).div_(math.fsum(weights)).float() for name in list(total)}


def _add(total: torch.Tensor, values: torch.Tensor, weight: float) -> None:
    """In blocks: torch copies FP32 values to FP64 before it adds them."""
    for first in range(0, len(total), _BLOCK):
        block = slice(first, first + _BLOCK)
        total[block].add_(values[block].double(), alpha=weight)
