from __future__ import annotations

from typing import Any

import torch

__all__ = ["_is_in_bad_fork", "get_rng_state", "manual_seed", "manual_seed_all", "set_rng_state"]

default_generators = [torch.Generator() for _ in range(8)]


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    return default_generators[0].get_state()


def set_rng_state(state: torch.Tensor, device: Any = "npu") -> None:
    default_generators[0].set_state(state)


def manual_seed(seed: int) -> None:
    default_generators[0].manual_seed(seed)


manual_seed_all = manual_seed


def _is_in_bad_fork() -> bool:
    return False
