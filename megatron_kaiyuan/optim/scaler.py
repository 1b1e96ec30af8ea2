"""megatron-core's dynamic loss scaler, where a run has one."""

from __future__ import annotations

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
