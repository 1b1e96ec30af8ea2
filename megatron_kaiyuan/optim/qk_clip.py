"""QK-clip: heads whose attention logits grew beyond tau get smaller query and key weights (Kimi K2, arXiv 2507.20534).

Shapes: n query heads and g key/value heads of a tensor-parallel rank, D head size, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.optim.main_weights import main_weights

# FP16's range: where a device multiplies in FP16 a logit beyond it is measured as inf, which would make weights 0.
_LARGEST_LOGIT = 65504.0


def row_factors(largest_logits_n: torch.Tensor, tau: float, groups: int, head_size: int) -> torch.Tensor:
    """What the rows of `linear_qkv`, [g * (n/g * D query, D key, D value), H], are multiplied by; FP32, one a row.

    The logits of head h become min(1, tau / S_h) times what they were, those of no other head change. Where a key head
    is its query head's own, either takes the square root. Where a group shares it, the query rows take the whole
    factor, as Kimi K2 does with the rotary part of the query, whose key all heads share.

    Args:
        largest_logits_n: S, the largest logit of each head.
    """
    factor_n = tau / largest_logits_n.clamp(tau, max(tau, _LARGEST_LOGIT))
    query_g = factor_n.view(groups, -1)
    key_g = torch.ones_like(query_g[:, :1])
    if query_g.size(1) == 1:
        query_g = key_g = query_g.sqrt()
    return torch.cat((query_g, key_g, torch.ones_like(key_g)), dim=1).flatten().repeat_interleave(head_size)


@torch.no_grad()
def scale_rows(optimizer: ChainedOptimizer, factors: Mapping[torch.nn.Parameter, torch.Tensor]) -> None:
    """Multiply the FP32 main weights of matrices by a factor a row, each rank those that it updates.

    A factor of 1 changes no bit. The network's own weights follow when the optimizer copies its main weights there.
    """
    for weights in main_weights(optimizer):
        if weights.parameter in factors:
            width, values = weights.parameter.size(1), weights.values
            first, skipped = divmod(weights.start, width)
            rows = factors[weights.parameter][first : -(-(weights.start + len(values)) // width)]
            values.mul_(rows.repeat_interleave(width)[skipped : skipped + len(values)])
