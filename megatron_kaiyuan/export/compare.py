"""How far an exported folder's logits are from another implementation of the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megatron_kaiyuan.export.loading import load_network


def largest_logit_difference(
    folder: Path,
    reference_logits: Callable[[torch.Tensor], torch.Tensor],
    token_ids_bs: torch.Tensor,
) -> float:
    """Largest absolute difference between the logits of the exported model and of a reference, in FP32.

    Args:
        folder: what `export_model` wrote.
        reference_logits: token ids [batch, sequence] -> logits [batch, sequence, vocabulary], batch first.
        token_ids_bs: int64 [batch, sequence].

    Raises:
        UserError: the folder cannot be loaded.
        ValueError: the reference's logits have another shape.
    """
    network = load_network(folder)
    with torch.no_grad():
        exported_bsv = network(token_ids_bs).logits
        reference_bsv = reference_logits(token_ids_bs).float().cpu()
    if exported_bsv.shape != reference_bsv.shape:
        raise ValueError(f"reference logits {list(reference_bsv.shape)}, exported {list(exported_bsv.shape)}")
    return (exported_bsv - reference_bsv).abs().max().item()
