"""The optimizers that `megatron_kaiyuan/optimizers.py` lists: what updates the main weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.optim import adamw

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Algorithm:
    """An optimizer of torch's kind.

    Attributes:
        build: from one of megatron-core's that has the parameter groups and has not stepped yet. Its groups have `lr`,
            `weight_decay` and `eps` from then on, and count their steps as `step`.
        last_update: what the last step added to the values, from them, their state (by the names of
            `optimizers.STATES`) and their group's options. All tensors are flat and of one length.
    """

    build: Callable[[torch.optim.Optimizer, RunConfig], torch.optim.Optimizer]
    last_update: Callable[[torch.Tensor, State, dict[str, Any]], torch.Tensor]


ALGORITHMS = {"adam": Algorithm(adamw.build, adamw.last_update)}
