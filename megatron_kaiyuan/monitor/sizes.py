"""How large the elements of a tensor are, measured in blocks: no copy of a whole tensor, no wait for the device.

Tensor suffixes: s sequence, b batch, n query heads, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch

from megatron_kaiyuan.platform.blocks import block_rows

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Sizes(NamedTuple):
    """Of one tensor, FP32 scalars on its device.

    Attributes:
        mean: of |x|.
        mean_square: of x^2.
        peak: the largest |x|; NaN where the tensor holds one.
    """

    mean: torch.Tensor
    mean_square: torch.Tensor
    peak: torch.Tensor


def sizes(tensor: torch.Tensor, change: Change | None = None) -> Sizes:
    """Exact but for the rounding of FP32 sums, whatever the precision of the tensor.

    Args:
        change: of the elements, block by block, before they are measured.
    """
    sums, squares, peaks = [], [], []
    rows = block_rows(tensor.numel() // tensor.size(0), tensor.device.type)
    for part in tensor.detach().split(rows):
        magnitudes = (change(part) if change else part).abs()
        sums.append(magnitudes.sum(dtype=torch.float32))
        squares.append(torch.linalg.vector_norm(magnitudes, dtype=torch.float32).square())
        # torch's infinity norm says the same, twenty times slower on a CPU.
        peaks.append(magnitudes.amax())
    count = tensor.numel()
    return Sizes(torch.stack(sums).sum() / count, torch.stack(squares).sum() / count, torch.stack(peaks).amax().float())


def largest_attention_logit(
    query_sbnd: torch.Tensor, key_sbgd: torch.Tensor, scale: float, documents_bs: torch.Tensor | None
) -> torch.Tensor:
    """The largest |q k^T| * scale over all heads and all pairs that attention looks at; an FP32 scalar.

    Exact on a CPU. Elsewhere products are rounded to the tensors' own precision, and one beyond its range is inf, as
    in an attention that writes its scores down.

    Args:
        documents_bs: number of each token's document, beyond which attention does not look; None: all are one.
    """
    peaks = []
    for scores_bnst in _scores(query_sbnd, key_sbgd, scale, documents_bs):
        lowest, highest = scores_bnst.aminmax()
        peaks += [-lowest, highest]
    return torch.stack(peaks).amax().float()


def largest_attention_logit_by_head(
    query_sbnd: torch.Tensor, key_sbgd: torch.Tensor, scale: float, documents_bs: torch.Tensor | None
) -> torch.Tensor:
    """The largest q k^T * scale of each head, with its sign, but at least 0; FP32 [n]. Otherwise as for all heads."""
    parts = [scores_bnst.amax((0, 2, 3)) for scores_bnst in _scores(query_sbnd, key_sbgd, scale, documents_bs)]
    return torch.stack(parts).amax(0).clamp_(min=0).float()


def _scores(
    query_sbnd: torch.Tensor, key_sbgd: torch.Tensor, scale: float, documents_bs: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """q k^T * scale in blocks of queries; 0 where attention does not look."""
    length, batch, heads, _ = query_sbnd.shape
    # A CPU emulates half precision, slowly.
    dtype = torch.float32 if query_sbnd.device.type == "cpu" else query_sbnd.dtype
    key_bgds = key_sbgd.detach().to(dtype).permute(1, 2, 3, 0)
    query_sbgnd = query_sbnd.detach().unflatten(2, (key_sbgd.size(2), -1))
    rows = block_rows(batch * heads * length, query_sbnd.device.type)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        block = (query_sbgnd[start:stop].to(dtype) * scale).permute(1, 2, 3, 0, 4)
        scores = block.flatten(2, 3) @ key_bgds[..., :stop]
        scores = scores.view(batch, heads, stop - start, stop)
        scores[..., start:].tril_()
        if documents_bs is not None:
            scores.masked_fill_(documents_bs[:, None, start:stop, None] != documents_bs[:, None, None, :stop], 0)
        yield scores
