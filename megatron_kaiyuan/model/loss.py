"""The loss of each token: soft cap, cross-entropy and z-loss, in FP32 block by block, without FP32 logits.

Logits stay as the head makes them. Both passes go over them in blocks of tokens that fit a cache; the backward pass
computes cap and softmax again and writes the gradient over the logits. z-loss adds `coefficient * (log Z)^2` to the
objective of a token, Z the sum of the exponentials of its logits, which keeps them from drifting: a softmax does not
see that, and FP16 does. Its logits are those that the softmax sees: behind the cap, padding of the vocabulary included.

Sources: the cap Gemma 2 (arXiv 2408.00118), z-loss PaLM (arXiv 2204.02311, 1e-4).
Tensor suffixes: s sequence, b batch, t tokens, v part of the vocabulary of a tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.platform.blocks import block_rows


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_tv: torch.Tensor, labels_t: torch.Tensor, cap: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        group = parallel_state.get_tensor_model_parallel_group()
        rows = logits_tv.size(-1)
        local_t = labels_t - rows * group.rank()
        is_here_t = (local_t >= 0) & (local_t < rows)
        local_t1 = local_t.where(is_here_t, 0).unsqueeze(-1)
        # Of this rank's part of the vocabulary: the largest logit, the sum of exponentials below it, the label's logit.
        peak_t, sum_t, label_t = logits_tv.new_empty(3, len(logits_tv), dtype=_at_least_fp32(logits_tv))
        for part, bounded_tv in _blocks(logits_tv, cap):
            torch.amax(bounded_tv, -1, out=peak_t[part])
            label_t[part] = bounded_tv.gather(-1, local_t1[part]).squeeze(-1)
            torch.sum(bounded_tv.sub_(peak_t[part].unsqueeze(-1)).exp_(), -1, out=sum_t[part])
        highest_t = peak_t.clone()
        torch.distributed.all_reduce(highest_t, op=torch.distributed.ReduceOp.MAX, group=group)
        sums = torch.stack((sum_t * (peak_t - highest_t).exp(), label_t.where(is_here_t, 0)))
        torch.distributed.all_reduce(sums, group=group)
        sum_t, label_t = sums
        log_z_t = sum_t.log() + highest_t
        ctx.save_for_backward(logits_tv, log_z_t, local_t1, is_here_t)
        ctx.cap = cap
        return log_z_t - label_t, log_z_t

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        of_loss_t, of_log_z_t = gradients
        logits_tv, log_z_t, local_t1, is_here_t = ctx.saved_tensors
        of_softmax_t1 = (of_loss_t + of_log_z_t).unsqueeze(-1)
        of_label_t1 = -of_loss_t.where(is_here_t, 0).unsqueeze(-1)
        for part, bounded_tv in _blocks(logits_tv, ctx.cap):
            gradient_tv = (bounded_tv - log_z_t[part].unsqueeze(-1)).exp_().mul_(of_softmax_t1[part])
            gradient_tv.scatter_add_(-1, local_t1[part], of_label_t1[part])
            if ctx.cap is not None:
                gradient_tv = torch.ops.aten.tanh_backward(gradient_tv, bounded_tv.div_(ctx.cap))
            logits_tv[part] = gradient_tv
        return logits_tv, None, None


def _at_least_fp32(tensor: torch.Tensor) -> torch.dtype:
    # FP64 for tests of the gradient.
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(logits_tv: torch.Tensor, cap: float | None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Capped logits of some tokens at a time, in one buffer that may be overwritten."""
    step = block_rows(logits_tv.size(-1), logits_tv.device.type)
    buffer_tv = logits_tv.new_empty(min(step, len(logits_tv)), logits_tv.size(-1), dtype=_at_least_fp32(logits_tv))
    for start in range(0, len(logits_tv), step):
        part = slice(start, min(start + step, len(logits_tv)))
        bounded_tv = buffer_tv[: part.stop - start]
        bounded_tv.copy_(logits_tv[part])
        if cap is not None:
            bounded_tv.div_(cap).tanh_().mul_(cap)
        yield part, bounded_tv


def cross_entropy_and_log_z(
    logits_sbv: torch.Tensor, labels_sb: torch.Tensor, cap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and log Z of each token, [s, b], over the whole vocabulary; in FP32, of FP64 logits in FP64.

    The backward pass overwrites the logits, so that there is one only. Collective over tensor-parallel ranks; the
    backward pass needs no exchange.
    """
    shape = labels_sb.shape
    loss_t, log_z_t = _CrossEntropy.apply(logits_sbv.flatten(0, 1), labels_sb.flatten(), cap)
    return loss_t.view(shape), log_z_t.view(shape)


def set_loss(model: GPTModel, cap: float | None, z_loss: float = 0.0) -> None:
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
        loss_sb, log_z_sb = cross_entropy_and_log_z(logits_sbv, labels_bs.transpose(0, 1), cap)
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
    return cap * torch.tanh(logits.to(_at_least_fp32(logits)) / cap)
