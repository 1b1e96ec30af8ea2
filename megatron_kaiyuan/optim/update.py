"""megatron-core's optimizer step as its stages, so that the gradients can be looked at before they are used.

`MegatronOptimizer.step()` does the same in one call (megatron-core 0.16): unscale, norm, clip, update. Each stage is
over all parts of the optimizer: one verdict on overflow, one change of the scale, one norm, one gather of weights.
"""

from __future__ import annotations

import math

import megatron.core.optimizer.optimizer as megatron_optimizer
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer
from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer

from megatron_kaiyuan.optim.scaler import loss_scaler
from megatron_kaiyuan.platform.megatron import unscale_gradients


def measure_gradients(optimizer: ChainedOptimizer, overflowed: bool) -> tuple[bool, float]:
    """Unscale the gradients; whether the loss scaler found them not finite, and their norm (NaN then).

    Collective. Without a loss scaler the norm alone decides. The scaler has lowered or raised its scale afterwards.

    Args:
        overflowed: the devices say that these gradients are the result of an overflow, though they look finite; the
            same on every rank, also of the data-parallel ones, whose gradients are reduced already. They count as not
            finite then.
    """
    scaler = loss_scaler(optimizer)
    if scaler is None:
        if overflowed:
            return False, math.nan
        optimizer.prepare_grads()
    else:
        # megatron-core looks at gradients alone, so its scaler learns here what it would not find.
        overflowed = overflowed or unscale_gradients(optimizer.chained_optimizers)
        scaler.update(overflowed)
        if overflowed:
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
    for part in optimizer.chained_optimizers:
        if isinstance(part, DistributedOptimizer):
            # Its own form gathers the weights of all parts after each of them.
            MixedPrecisionOptimizer.step_with_ready_grads(part)
        else:
            part.step_with_ready_grads()
    # None without the distributed optimizer.
    for model in optimizer.model_chunks:
        if not model.ddp_config.overlap_param_gather:
            model.start_param_sync()
