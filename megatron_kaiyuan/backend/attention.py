"""Core attention: causal within a sequence, or within each document of it.

`torch_attention` is torch's scaled_dot_product_attention, which every device has; it knows documents by a mask of all
pairs only. The others compute no pair that is masked: `in_parts` on CPUs, `flex_attention` on NVIDIA GPUs.

Tensor suffixes: s sequence, b batch, n query heads, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.weak import WeakTensorKeyDictionary

# Of queries [b, n, s, d], keys and values [b, g, s, d], the factor of scores (None: d ** -0.5) and the number of each
# token's document [b, s], or None where all are one; returns [b, n, s, d].
Attention: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, "float | None", "torch.Tensor | None"], torch.Tensor
]
# Beyond so many tokens torch's CPU kernel computes whole blocks of which half is masked: 512 keys at a time.
_LARGEST_TRIANGLE = 256


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
        return masked_attention(query_bnsd, key_bgsd, value_bgsd, scale, _once(_masks, document_mask, documents_bs))
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


def in_parts(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    documents_bs: torch.Tensor | None,
) -> torch.Tensor:
    """torch's kernel for CPUs over the parts of the scores that are not masked, joined by their log-sum-exp.

    The triangle of a document is cut into small ones along the diagonal and squares below it, as ring attention
    (arXiv 2310.01889) cuts it over devices.
    """
    return _InParts.apply(query_bnsd, key_bgsd, value_bgsd, scale, list(_parts(query_bnsd.size(2), documents_bs)))


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


class _Part(NamedTuple):
    """Some queries of some samples and keys that they see: all of them, or, of the same tokens, causally."""

    samples: slice
    queries: slice
    keys: slice
    is_causal: bool

    def query_side(self, tensor_bns: torch.Tensor) -> torch.Tensor:
        return tensor_bns[self.samples, :, self.queries]

    def key_side(self, tensor_bgs: torch.Tensor) -> torch.Tensor:
        return tensor_bgs[self.samples, :, self.keys]


def _parts(length: int, documents_bs: torch.Tensor | None) -> Iterator[_Part]:
    """Those with the diagonal hold each token once, and come before any other of its queries and keys."""
    if documents_bs is None:
        yield from _triangle(slice(None), 0, length)
        return
    for sample, documents_s in enumerate(documents_bs):
        changes = (documents_s.diff().nonzero().flatten() + 1).tolist()
        for start, stop in zip([0, *changes], [*changes, length], strict=True):
            yield from _triangle(slice(sample, sample + 1), start, stop)


def _triangle(samples: slice, start: int, stop: int) -> Iterator[_Part]:
    if stop - start <= _LARGEST_TRIANGLE:
        yield _Part(samples, slice(start, stop), slice(start, stop), is_causal=True)
        return
    middle = (start + stop) // 2
    yield from _triangle(samples, start, middle)
    yield from _triangle(samples, middle, stop)
    yield _Part(samples, slice(middle, stop), slice(start, middle), is_causal=False)


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_bnsd: torch.Tensor,
        key_bgsd: torch.Tensor,
        value_bgsd: torch.Tensor,
        scale: float | None,
        parts: list[_Part],
    ) -> torch.Tensor:
        # Sums of parts are not rounded in between.
        exact = torch.promote_types(query_bnsd.dtype, torch.float32)
        output_bnsd = torch.empty_like(query_bnsd, dtype=exact)
        log_sum_bns = output_bnsd.new_empty(query_bnsd.shape[:-1])
        for part in parts:
            found_bnsd, found_log_bns = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                part.query_side(query_bnsd),
                part.key_side(key_bgsd),
                part.key_side(value_bgsd),
                is_causal=part.is_causal,
                scale=scale,
            )
            here_bnsd, here_log_bns = part.query_side(output_bnsd), part.query_side(log_sum_bns)
            if part.is_causal:
                here_bnsd.copy_(found_bnsd)
                here_log_bns.copy_(found_log_bns)
                continue
            both_log_bns = torch.logaddexp(here_log_bns, found_log_bns)
            here_bnsd.mul_((here_log_bns - both_log_bns).exp_().unsqueeze(-1))
            here_bnsd.addcmul_(found_bnsd, (found_log_bns - both_log_bns).exp_().unsqueeze(-1))
            here_log_bns.copy_(both_log_bns)
        output_bnsd = output_bnsd.to(query_bnsd.dtype)
        ctx.save_for_backward(query_bnsd, key_bgsd, value_bgsd, output_bnsd, log_sum_bns)
        ctx.scale, ctx.parts = scale, parts
        return output_bnsd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_bnsd, key_bgsd, value_bgsd, output_bnsd, log_sum_bns = ctx.saved_tensors
        exact = torch.promote_types(query_bnsd.dtype, torch.float32)
        found = tuple(torch.empty_like(tensor, dtype=exact) for tensor in (query_bnsd, key_bgsd, value_bgsd))
        of_query_bnsd, of_key_bgsd, of_value_bgsd = found
        for part in ctx.parts:
            # With the output and the log-sum-exp over all keys the kernel finds the part's share of the gradients.
            shares = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                part.query_side(gradients[0]),
                part.query_side(query_bnsd),
                part.key_side(key_bgsd),
                part.key_side(value_bgsd),
                part.query_side(output_bnsd),
                part.query_side(log_sum_bns),
                dropout_p=0.0,
                is_causal=part.is_causal,
                scale=ctx.scale,
            )
            sums = part.query_side(of_query_bnsd), part.key_side(of_key_bgsd), part.key_side(of_value_bgsd)
            for sum_of_shares, share in zip(sums, shares, strict=True):
                sum_of_shares.copy_(share) if part.is_causal else sum_of_shares.add_(share)
        return *(tensor.to(query_bnsd.dtype) for tensor in found), None, None


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
