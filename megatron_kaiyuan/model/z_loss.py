"""z-loss: the objective gets `coefficient * (log Z)^2` a token, Z the sum of the exponentials of its logits.

It keeps logits from drifting, which a softmax does not see and FP16 does. Source: PaLM (arXiv 2204.02311, 1e-4).
Logits are those that the softmax sees: behind the cap, padding of the vocabulary included.
Tensor suffixes: s sequence, b batch, v part of the vocabulary of a tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_sbv: torch.Tensor, labels_sb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        group = parallel_state.get_tensor_model_parallel_group()
        peak_sb = logits_sbv.amax(-1)
        torch.distributed.all_reduce(peak_sb, op=torch.distributed.ReduceOp.MAX, group=group)
        shifted_sbv = logits_sbv.sub_(peak_sb.unsqueeze(-1))
        rows = logits_sbv.size(-1)
        local_sb = labels_sb - rows * group.rank()
        is_here_sb = (local_sb >= 0) & (local_sb < rows)
        local_sb1 = local_sb.where(is_here_sb, 0).unsqueeze(-1)
        predicted_sb = shifted_sbv.gather(-1, local_sb1).squeeze(-1).where(is_here_sb, 0)
        softmax_sbv = shifted_sbv.exp_()
        sums = torch.stack((softmax_sbv.sum(-1), predicted_sb))
        torch.distributed.all_reduce(sums, group=group)
        total_sb, predicted_sb = sums
        softmax_sbv.div_(total_sb.unsqueeze(-1))
        ctx.save_for_backward(softmax_sbv, local_sb1, is_here_sb)
        return total_sb.log() - predicted_sb, total_sb.log() + peak_sb

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        of_loss_sb, of_log_z_sb = gradients
        softmax_sbv, local_sb1, is_here_sb = ctx.saved_tensors
        gradient_sbv = softmax_sbv.mul_((of_loss_sb + of_log_z_sb).unsqueeze(-1))
        gradient_sbv.scatter_add_(-1, local_sb1, -of_loss_sb.where(is_here_sb, 0).unsqueeze(-1))
        return gradient_sbv, None


def cross_entropy_and_log_z(logits_sbv: torch.Tensor, labels_sb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and log Z of each token, [s, b], over the whole vocabulary; in FP32, of FP64 logits in FP64.

    As megatron-core's cross-entropy it overwrites FP32 logits: no second tensor of their size, and one backward
    pass only. Collective over tensor-parallel ranks; the backward pass needs no exchange.
    """
    at_least_fp32 = torch.promote_types(logits_sbv.dtype, torch.float32)
    return _CrossEntropy.apply(logits_sbv.to(at_least_fp32), labels_sb)


def add_z_loss(model: GPTModel, coefficient: float) -> None:
    """Let a GPTModel's loss have the gradient of cross-entropy plus z-loss, and stay the cross-entropy's number.

    Whatever masks, weighs and scales the cross-entropy of a token does so with its z-loss, and loss curves of runs
    with and without it compare. A stage without the head is left alone.
    """

    def loss(labels_bs: torch.Tensor, logits_sbv: torch.Tensor) -> torch.Tensor:
        loss_sb, log_z_sb = cross_entropy_and_log_z(logits_sbv, labels_bs.transpose(0, 1).contiguous())
        z_loss_sb = coefficient * log_z_sb.square()
        # The difference is exactly 0.
        return (loss_sb + (z_loss_sb - z_loss_sb.detach())).transpose(0, 1).contiguous()

    if model.post_process:
        model.compute_language_model_loss = loss
