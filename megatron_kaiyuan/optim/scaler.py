"""megatron-core's dynamic loss scaler, where a run has one."""

from __future__ import annotations

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.grad_scaler import DynamicGradScaler


def loss_scaler(optimizer: ChainedOptimizer) -> DynamicGradScaler | None:
    """The scaler of FP16; None in other precisions.

    It halves the scale at an overflow once `hysteresis` of them have come, down to its minimum, and doubles it after
    `loss_scale_window` good steps. Only a doubling gives the hysteresis back: until then each further overflow halves.
    """
    (part,) = optimizer.chained_optimizers
    scaler = getattr(part, "grad_scaler", None)
    return scaler if isinstance(scaler, DynamicGradScaler) else None


def adapt_scaler(optimizer: ChainedOptimizer, hysteresis: int) -> None:
    """Fit a scaler's loaded state to the recipe: megatron-core would use some of its options at the next doubling only.

    The scale is at least its minimum, and overflows that have come since the last doubling still count. A window that
    is shorter than the good steps so far ends with the next one: megatron-core waits for the exact number.

    Args:
        hysteresis: that the state was saved with.
    """
    scaler = loss_scaler(optimizer)
    if scaler is None:
        return
    scaler._scale = torch.maximum(scaler._scale, scaler.min_scale)
    scaler._hysteresis_tracker += scaler.hysteresis - hysteresis
    scaler._growth_tracker = min(scaler._growth_tracker, scaler.growth_interval - 1)
