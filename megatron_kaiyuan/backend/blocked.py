"""Core attention in torch's plain operations, for devices without a fused kernel of it (the first Ascend generation).

One block of queries at a time, against the keys up to its end: scores of all pairs are never in memory, and the half of
them that a causal mask hides is mostly not computed. Queries, keys and values alone are saved; the backward pass
computes probabilities again. Products are taken in the precision of the inputs, the softmax in FP32.

Nothing here is infinite: hidden scores are finite numbers, so that a device whose register keeps overflows reports
those alone that happened.

Tensor suffixes: s sequence (keys: up to the end of the block), q queries of a block, b batch, n query heads, g
key/value heads, d head size; r the queries of a block of all heads that share a key head, one head after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from megatron_kaiyuan.backend.attention import document_mask, mask_of
from megatron_kaiyuan.platform.blocks import block_queries

# Of a softmax in FP32: exp(-104) is 0.
_MARGIN = 128.0
# The rounding of scores, and of the hidden score itself, in BF16.
_ROUNDING = 1.01


def blocked_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    documents_bs: torch.Tensor | None,
) -> torch.Tensor:
    """Causal, or within each document: see `attention.Attention`."""
    mask_b1ss = _causal_mask(query_bnsd.size(2), query_bnsd.device) if documents_bs is None else mask_of(documents_bs)
    return blocked_masked_attention(query_bnsd, key_bgsd, value_bgsd, scale, mask_b1ss)


def blocked_masked_attention(
    query_bnsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    scale: float | None,
    mask_b1ss: torch.Tensor,
) -> torch.Tensor:
    """Under Megatron's mask, boolean [b or 1, 1, s, s], true where a query (row) must not see a key.

    The mask must be causal, and leave each query a key.
    """
    return _Blocked.apply(query_bnsd, key_bgsd, value_bgsd, mask_b1ss, scale or query_bnsd.size(-1) ** -0.5)


@lru_cache(maxsize=2)
def _causal_mask(length: int, device: torch.device) -> torch.Tensor:
    return document_mask(torch.zeros(1, length, dtype=torch.int32, device=device))


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_bnsd: torch.Tensor,
        key_bgsd: torch.Tensor,
        value_bgsd: torch.Tensor,
        mask_b1ss: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(query_bnsd, key_bgsd, value_bgsd)
        ctx.mask, ctx.scale = mask_b1ss, scale
        output_bnsd = _tokens_first(query_bnsd)
        hidden_score = _hidden_score(query_bnsd, key_bgsd, scale)
        for sample, key_gsd, value_gsd in _samples(key_bgsd, value_bgsd):
            for block in _blocks(query_bnsd, mask_b1ss, sample):
                query_grd = _folded(query_bnsd[block.queries], key_gsd) * scale
                keys_and_values = key_gsd[:, : block.keys], value_gsd[:, : block.keys]
                output_grd = _attend(query_grd, *keys_and_values, block.mask_qs, hidden_score)
                output_bnsd[block.queries] = output_grd.view_as(output_bnsd[block.queries])
        return output_bnsd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_bnsd, key_bgsd, value_bgsd = ctx.saved_tensors
        of_query_bnsd, of_key_bgsd, of_value_bgsd = map(_tokens_first, ctx.saved_tensors)
        hidden_score = _hidden_score(query_bnsd, key_bgsd, ctx.scale)
        for sample, key_gsd, value_gsd in _samples(key_bgsd, value_bgsd):
            scaled_key_gsd = key_gsd * ctx.scale
            # Sums over blocks of products that were rounded.
            of_key_gsd, of_value_gsd = (torch.zeros_like(part, dtype=_exact(part)) for part in (key_gsd, value_gsd))
            for block in _blocks(query_bnsd, ctx.mask, sample):
                query_grd = _folded(query_bnsd[block.queries], key_gsd) * ctx.scale
                gradient_grd = _folded(gradients[0][block.queries], key_gsd)
                keys_and_values = key_gsd[:, : block.keys], value_gsd[:, : block.keys]
                of_scores_grs, of_value_block_gsd = _attend_backward(
                    gradient_grd, query_grd, *keys_and_values, block.mask_qs, hidden_score
                )
                of_value_gsd[:, : block.keys] += of_value_block_gsd
                of_key_gsd[:, : block.keys] += of_scores_grs.mT @ query_grd
                of_query_grd = of_scores_grs @ scaled_key_gsd[:, : block.keys]
                of_query_bnsd[block.queries] = of_query_grd.view_as(query_bnsd[block.queries])
                # The next block's must not find it in memory.
                del of_scores_grs
            of_key_bgsd[sample], of_value_bgsd[sample] = of_key_gsd, of_value_gsd
        return of_query_bnsd, of_key_bgsd, of_value_bgsd, None, None


def _attend(
    query_grd: torch.Tensor,
    key_gsd: torch.Tensor,
    value_gsd: torch.Tensor,
    mask_qs: torch.Tensor,
    hidden_score: torch.Tensor,
) -> torch.Tensor:
    return _probabilities(query_grd, key_gsd, mask_qs, hidden_score).to(value_gsd.dtype) @ value_gsd


def _attend_backward(
    gradient_grd: torch.Tensor,
    query_grd: torch.Tensor,
    key_gsd: torch.Tensor,
    value_gsd: torch.Tensor,
    mask_qs: torch.Tensor,
    hidden_score: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the scores and of the values."""
    exact_grs = _probabilities(query_grd, key_gsd, mask_qs, hidden_score)
    of_value_gsd = exact_grs.to(value_gsd.dtype).mT @ gradient_grd
    of_exact_grs = (gradient_grd @ value_gsd.mT).to(exact_grs.dtype)
    # The peak of memory: three tensors of a block's scores.
    of_scores_grs = torch._softmax_backward_data(of_exact_grs, exact_grs, -1, exact_grs.dtype)
    del exact_grs, of_exact_grs
    return of_scores_grs.to(value_gsd.dtype), of_value_gsd


def _probabilities(
    query_grd: torch.Tensor, key_gsd: torch.Tensor, mask_qs: torch.Tensor, hidden_score: torch.Tensor
) -> torch.Tensor:
    """[g, r, s] in FP32, of scaled queries."""
    scores_grs = query_grd @ key_gsd.mT
    scores_grs.unflatten(1, (-1, len(mask_qs))).masked_fill_(mask_qs, hidden_score)
    scores_grs = scores_grs.to(_exact(scores_grs))
    return scores_grs.softmax(-1)


def _hidden_score(query_bnsd: torch.Tensor, key_bgsd: torch.Tensor, scale: float) -> torch.Tensor:
    """A score that is below all others by enough to have no share in a softmax, in the precision of the scores.

    No score is beyond the product of the longest query and the longest key (Cauchy and Schwarz). Not the lowest number
    there is: of that, a kernel that subtracts in half precision the largest score makes an overflow.
    """
    longest = [
        torch.linalg.vector_norm(part, dim=-1, dtype=_exact(part)).amax() for part in (query_bnsd * scale, key_bgsd)
    ]
    lowest = (longest[0] * longest[1]).mul_(-_ROUNDING).sub_(_MARGIN)
    return lowest.clamp_(min=torch.finfo(key_bgsd.dtype).min).to(key_bgsd.dtype)


def _samples(key_bgsd: torch.Tensor, value_bgsd: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    # One at a time: neither memory nor the shapes, which a device may compile kernels for, depend on their number.
    for sample, (key_gsd, value_gsd) in enumerate(zip(key_bgsd, value_bgsd, strict=True)):
        yield sample, key_gsd.contiguous(), value_gsd.contiguous()


class _Block(NamedTuple):
    """Where queries of a sample lie in [b, n, s, d], how many keys they may see, and their mask."""

    queries: tuple[int, slice, slice]
    keys: int
    mask_qs: torch.Tensor


def _blocks(query_bnsd: torch.Tensor, mask_b1ss: torch.Tensor, sample: int) -> Iterator[_Block]:
    _, heads, length, _ = query_bnsd.shape
    rows = block_queries(heads, length)
    mask_ss = mask_b1ss[sample % len(mask_b1ss), 0]
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        yield _Block((sample, slice(None), slice(start, stop)), stop, mask_ss[start:stop, :stop])


def _folded(part_nqd: torch.Tensor, key_gsd: torch.Tensor) -> torch.Tensor:
    """[n, q, d] to [g, r, d]: the heads that share a key head are one matrix, so that no key is repeated."""
    return part_nqd.reshape(len(key_gsd), -1, part_nqd.size(-1))


def _tokens_first(like_bnsd: torch.Tensor) -> torch.Tensor:
    """Empty, and in memory as the projections on both sides have it: a copy less."""
    batch, heads, length, size = like_bnsd.shape
    return like_bnsd.new_empty(length, batch, heads, size).permute(1, 2, 0, 3)


def _exact(tensor: torch.Tensor) -> torch.dtype:
    # FP64 for tests.
    return torch.promote_types(tensor.dtype, torch.float32)
