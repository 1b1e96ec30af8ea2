"""The loss of each token: soft cap, cross-entropy and z-loss, in FP32 block by block, without FP32 logits.

Logits stay as the head makes them, FP32 ones capped in their place. Both passes (`backend/operations.py`) go over them
in blocks of tokens that fit a cache, or in kernels that keep nothing; the backward pass computes the softmax, and in
half precision the cap, again and writes the gradient over the logits. z-loss adds `coefficient * (log Z)^2` to the
objective of a token, Z the sum of the exponentials of its logits, which keeps them from drifting: a softmax does not
see that, and FP16 does. Its logits are those that the softmax sees: after the cap, padding of the vocabulary included.

Sources: the cap Gemma 2 (arXiv 2408.00118), z-loss PaLM (arXiv 2204.02311, 1e-4).
Tensor suffixes: s sequence, b batch, t tokens, v part of the vocabulary of a tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.backend.formulas import EAGER, Formulas
from megatron_kaiyuan.backend.operations import cross_entropy


def cross_entropy_and_log_z(
    logits_sbv: torch.Tensor, labels_sb: torch.Tensor, cap: float | None = None, formulas: Formulas = EAGER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and log Z of each token, [s, b], over the whole vocabulary; in FP32, of FP64 logits in FP64.

    The backward pass overwrites the logits, so that there is one only. Collective over tensor-parallel ranks; the
    backward pass needs no exchange.
    """
    shape, group = labels_sb.shape, parallel_state.get_tensor_model_parallel_group()
    loss_t, log_z_t = cross_entropy(logits_sbv.flatten(0, 1), labels_sb.flatten(), cap, group, formulas)
    return loss_t.view(shape), log_z_t.view(shape)


def set_loss(model: GPTModel, cap: float | None, z_loss: float = 0.0, formulas: Formulas = EAGER) -> None:
    """Let a GPTModel compute its loss from soft-capped logits, and return capped ones where it has no labels.

    A stage without the head is left alone. With z-loss the loss has its gradient and stays the cross-entropy's number:
    whatever masks, weighs and scales the cross-entropy of a token does so with its z-loss, and loss curves of runs
    with and without it compare.

    Args:
        cap: capped logits are cap * tanh(z / cap), in FP32; None leaves them as they are.
        z_loss: its coefficient.
    """
    if not model.post_process:
        return

    def loss(labels_bs: torch.Tensor, logits_sbv: torch.Tensor) -> torch.Tensor:
        loss_sb, log_z_sb = cross_entropy_and_log_z(logits_sbv, labels_bs.transpose(0, 1), cap, formulas)
        if z_loss:
            z_loss_sb = z_loss * log_z_sb.square()
            # The difference is exactly 0.
            loss_sb = loss_sb + (z_loss_sb - z_loss_sb.detach())
        return loss_sb.transpose(0, 1).contiguous()

    def cap_logits(model: GPTModel, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        is_loss = output.dim() == 2
        return None if is_loss or cap is None else soft_cap(output, cap)

    model.compute_language_model_loss = loss
    model.register_forward_hook(cap_logits)


def soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Logits bounded to (-cap, cap): a new tensor of the same shape in FP32, of FP64 logits in FP64."""
    return cap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap)
