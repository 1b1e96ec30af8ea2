"""megatron-core's optimizer step in its parts, so that somebody may look at the gradients before they are used.

`MegatronOptimizer.step()` does the same in one call (megatron-core 0.16): unscale, norm, clip, update.
"""

from __future__ import annotations

import math

import megatron.core.optimizer.optimizer as megatron_optimizer
from megatron.core.optimizer import ChainedOptimizer


def measure_gradients(optimizer: ChainedOptimizer) -> tuple[bool, float]:
    """Unscale the gradients; whether the loss scaler found them not finite, and their norm (NaN then).

    Collective. Without a loss scaler the norm alone tells. The scaler has lowered or raised its scale afterwards.
    """
    if optimizer.prepare_grads():
        return True, math.nan
    return False, float(optimizer.get_grad_norm())


def apply_update(optimizer: ChainedOptimizer, gradient_norm: float) -> None:
    """Clip the gradients that `measure_gradients` prepared and update weights with them. Collective."""
    for part in optimizer.chained_optimizers:
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            # Looked up in its module, where the CPU platform has put its own form of it.
            megatron_optimizer.clip_grad_by_total_norm_fp32(
                parameters, max_norm=part.config.clip_grad, total_norm=gradient_norm
            )
    optimizer.step_with_ready_grads()
