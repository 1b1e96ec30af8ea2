"""megatron-core's dynamic loss scaler, where a run has one."""

from __future__ import annotations

from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.grad_scaler import DynamicGradScaler

from megatron_kaiyuan.platform.megatron import fit_scaler


def loss_scaler(optimizer: ChainedOptimizer) -> DynamicGradScaler | None:
    """Return the scaler of FP16, which all parts of the optimizer share; None in other precisions.

    It halves the scale at an overflow once `hysteresis` of them have come, down to its minimum, and doubles it after
    `loss_scale_window` good steps. Only a doubling gives the hysteresis back: until then each further overflow halves.
    """
    scalers = (getattr(part, "grad_scaler", None) for part in optimizer.chained_optimizers)
    return next((scaler for scaler in scalers if isinstance(scaler, DynamicGradScaler)), None)


def adapt_scaler(optimizer: ChainedOptimizer, hysteresis: int) -> None:
    """Fit a scaler's loaded state to the recipe: megatron-core would use some of its options at the next doubling only.

    The scale is at least its minimum, and overflows that have come since the last doubling still count. A window that
    is shorter than the good steps so far ends with the next one: megatron-core waits for the exact number.

    Args:
        hysteresis: that the state was saved with.
    """
    scaler = loss_scaler(optimizer)
    if scaler is not None:
        fit_scaler(scaler, hysteresis)
