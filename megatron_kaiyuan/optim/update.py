"""megatron-core's optimizer step in its parts, so that somebody may look at the gradients before they are used.

`MegatronOptimizer.step()` does the same in one call (megatron-core 0.16): unscale, norm, clip, update.
"""

from __future__ import annotations

import math

import megatron.core.optimizer.optimizer as megatron_optimizer
from megatron.core.optimizer import ChainedOptimizer


def measure_gradients(optimizer: ChainedOptimizer, overflowed: bool) -> tuple[bool, float]:
    """Unscale the gradients; whether the loss scaler found them not finite, and their norm (NaN then).

    Collective. Without a loss scaler the norm alone tells. The scaler has lowered or raised its scale afterwards.

    Args:
        overflowed: the devices say that these gradients are the result of an overflow, though they look finite; the
            same on every rank, also of the data-parallel ones, whose gradients are reduced already. They count as not
            finite then.
    """
    if overflowed:
        # megatron-core looks at gradients alone, so its scaler is told here what it would not find.
        scalers = [scaler for part in optimizer.chained_optimizers if (scaler := getattr(part, "grad_scaler", None))]
        for scaler in scalers:
            scaler.update(True)
        return bool(scalers), math.nan
    if optimizer.prepare_grads():
        return True, math.nan
    return False, float(optimizer.get_grad_norm())


def clip_gradients(optimizer: ChainedOptimizer, gradient_norm: float) -> None:
    """Clip the gradients that `measure_gradients` prepared by the norm that it gave."""
    for part in optimizer.chained_optimizers:
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            # Looked up in its module, where the CPU platform has put its own form of it.
            megatron_optimizer.clip_grad_by_total_norm_fp32(
                parameters, max_norm=part.config.clip_grad, total_norm=gradient_norm
            )


def apply_update(optimizer: ChainedOptimizer) -> None:
    """Update weights with the gradients as they are. Collective."""
    optimizer.step_with_ready_grads()
