"""Core attention: causal within a sequence, or within each document of it.

`torch_attention` is torch's scaled_dot_product_attention, which every device has; it knows documents by a mask of all
pairs only. Two compute no pair of two documents: `split_attention` on CPUs, `flex_attention` on NVIDIA GPUs.

Tensor suffixes: s sequence, b batch, n query heads, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeAlias

import torch
from torch.utils.weak import WeakTensorKeyDictionary

# Of queries [b, n, s, d], keys and values [b, g, s, d], the factor of scores (None: d ** -0.5) and the number of each
# token's document [b, s], or None where all are one; returns [b, n, s, d].
Attention: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, "float | None", "torch.Tensor | None"], torch.Tensor
]

# The same under Megatron's mask, boolean [b or 1, 1, s, s], true where a query (row) must not see a key.
MaskedAttention: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, "float | None", torch.Tensor], torch.Tensor
]


def torch_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    documents_bs: torch.Tensor | None,
    kernel: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """torch's own choice among its kernels, or one of them.

    Args:
        kernel: makes the context in which torch takes it.
    """
    if documents_bs is not None:
        return masked_attention(query_bnsd, key_bgsd, value_bgsd, scale, mask_of(documents_bs))
    grouped = query_bnsd.size(1) != key_bgsd.size(1)
    with kernel():
        return torch.nn.functional.scaled_dot_product_attention(
            query_bnsd, key_bgsd, value_bgsd, is_causal=True, scale=scale, enable_gqa=grouped
        )


def masked_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    mask_b1ss: torch.Tensor,
) -> torch.Tensor:
    """Under Megatron's mask, boolean [b or 1, 1, s, s], true where a query (row) must not see a key."""
    # torch's fused kernels that take a mask know no key/value groups, and the one that does builds all scores.
    heads_per_group = query_bnsd.size(1) // key_bgsd.size(1)
    if heads_per_group > 1:
        key_bgsd, value_bgsd = (part.repeat_interleave(heads_per_group, dim=1) for part in (key_bgsd, value_bgsd))
    return torch.nn.functional.scaled_dot_product_attention(
        query_bnsd, key_bgsd, value_bgsd, attn_mask=~mask_b1ss, scale=scale
    )


def document_mask(documents_bs: torch.Tensor) -> torch.Tensor:
    """Megatron's block-diagonal causal mask: boolean [b, 1, s, s], true where a query must not see a key."""
    length = documents_bs.size(1)
    future_ss = torch.ones(length, length, dtype=torch.bool, device=documents_bs.device).triu_(1)
    return (documents_bs[:, None, :, None] != documents_bs[:, None, None, :]) | future_ss


def mask_of(documents_bs: torch.Tensor) -> torch.Tensor:
    """`document_mask`, made once for all layers of a micro-batch."""
    return _once(_masks, document_mask, documents_bs)


def split_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    documents_bs: torch.Tensor | None,
) -> torch.Tensor:
    """torch's own choice for each document alone.

    Their lengths are read by the host, which a device would make wait.
    """
    assert documents_bs is not None
    samples = []
    for sample, documents_s in enumerate(documents_bs):
        lengths = documents_s.unique_consecutive(return_counts=True)[1].tolist()
        parts = (tensor[sample : sample + 1].split(lengths, 2) for tensor in (query_bnsd, key_bgsd, value_bgsd))
        outputs = [
            torch_attention(query, key, value, scale, None).permute(2, 0, 1, 3)
            for query, key, value in zip(*parts, strict=True)
        ]
        # As the projection wants it in memory: tokens first.
        samples.append(torch.cat(outputs))
    return torch.cat(samples, 1).permute(1, 2, 0, 3)


def flex_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    documents_bs: torch.Tensor | None,
) -> torch.Tensor:
    """torch's FlexAttention, which compiles a kernel that leaves out masked blocks of 128 queries and keys.

    A CPU has its forward pass only. It takes documents only: without, others are faster.
    """
    assert documents_bs is not None
    grouped = query_bnsd.size(1) != key_bgsd.size(1)
    return _compiled_flex()(
        query_bnsd,
        key_bgsd,
        value_bgsd,
        block_mask=_once(_block_masks, _block_mask, documents_bs),
        scale=scale,
        enable_gqa=grouped,
    )


# Of a micro-batch, made once for all layers, for as long as somebody has its document numbers.
_masks: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()
_block_masks: MutableMapping[torch.Tensor, Any] = WeakTensorKeyDictionary()


def _once(made: MutableMapping[torch.Tensor, Any], make: Callable[[torch.Tensor], Any], key: torch.Tensor) -> Any:
    if key not in made:
        made[key] = make(key)
    return made[key]


def _block_mask(documents_bs: torch.Tensor) -> Any:
    # Another object: the mask keeps it, and must not keep its own key.
    numbers_bs = documents_bs.detach()
    batch, length = numbers_bs.shape

    def sees(sample: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (numbers_bs[sample, query] == numbers_bs[sample, key])

    return _compiled_block_mask()(sees, batch, None, length, length, device=str(numbers_bs.device))


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)


@cache
def _compiled_block_mask() -> Callable[..., Any]:
    # Otherwise the mask of all pairs would exist for a moment.
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.create_block_mask, dynamic=False)
