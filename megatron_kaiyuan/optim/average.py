"""Equal mean of checkpoints' weights, the last step of the Kaiyuan recipe (arXiv 2512.07612: the last 8)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

Weights = dict[str, torch.Tensor]


def equal_mean(checkpoints: Iterable[Weights]) -> Weights:
    """Mean of each tensor over checkpoints, summed in FP64 and returned in FP32.

    Args:
        checkpoints: weights under the same names and shapes; read one at a time, so that two are in memory.
    """
    total: Weights = {}
    count = 0
    for weights in checkpoints:
        count += 1
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    if count == 0:
        raise ValueError("equal_mean needs at least one checkpoint")
    return {name: (tensor / count).float() for name, tensor in total.items()}
