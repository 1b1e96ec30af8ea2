"""Attention by its definition."""

from __future__ import annotations

import torch


def numbers(*rows: list[int]) -> torch.Tensor:
    """[b, s], of documents of these lengths."""
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, hidden: torch.Tensor
) -> torch.Tensor:
    heads_per_group = query.size(1) // key.size(1)
    key, value = (part.repeat_interleave(heads_per_group, dim=1) for part in (key, value))
    scores = scale * torch.einsum("bnsd,bntd->bnst", query, key)
    return torch.einsum("bnst,bntd->bnsd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
