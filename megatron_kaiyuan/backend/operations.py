"""The formulas as operations of autograd that save their inputs alone, and compute the rest again.

torch differentiates an expression operation by operation, each with a pass and often a saved tensor of its own.

Tensor suffixes: s sequence, b batch, n heads, d head size, h hidden, f ffn, t tokens, v vocabulary of
a rank.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from megatron_kaiyuan.backend.formulas import EAGER, Formulas


def rms_norm(
    input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype, formulas: Formulas = EAGER
) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, in FP32 and rounded once to `dtype`."""
    return _RmsNorm.apply(input_h, weight_h, epsilon, dtype, formulas)


def swiglu(gate_and_up_2f: torch.Tensor, formulas: Formulas = EAGER) -> torch.Tensor:
    """[..., 2f] to [..., f]: silu of the first half times the second."""
    return _Swiglu.apply(gate_and_up_2f, formulas)


def rotate(
    query_sbnd: torch.Tensor, key_sbnd: torch.Tensor, angles_s11d: torch.Tensor, formulas: Formulas = EAGER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of queries and keys.

    Args:
        angles_s11d: FP32; both halves of the last dimension are equal. The same tensor for all layers: sines of large
            angles cost a GPU more than the rotation.
    """
    if angles_s11d not in _turns:
        _turns[angles_s11d] = angles_s11d.cos(), angles_s11d.sin()
    return _Rotate.apply(query_sbnd, key_sbnd, *_turns[angles_s11d], formulas)


def cross_entropy(
    logits_tv: torch.Tensor,
    labels_t: torch.Tensor,
    cap: float | None,
    group: torch.distributed.ProcessGroup,
    formulas: Formulas = EAGER,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each token under the soft cap, and log Z; over the vocabulary of all ranks of the group.

    The backward pass overwrites the logits, so that there is one only, and needs no exchange; FP32 logits are capped in
    their place before.
    """
    return _CrossEntropy.apply(logits_tv, labels_t, cap, group, formulas)


# Cosine and sine, for as long as somebody has the angles.
_turns: MutableMapping[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = WeakTensorKeyDictionary()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_h: torch.Tensor,
        weight_h: torch.Tensor,
        epsilon: float,
        dtype: torch.dtype,
        formulas: Formulas,
    ) -> torch.Tensor:
        output_h, scale_1 = formulas.rms_norm(input_h, weight_h, epsilon, dtype)
        ctx.save_for_backward(input_h, weight_h, scale_1)
        ctx.formulas = formulas
        return output_h

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Sums over rows depend on how they lie, and recomputed attention lays its gradients differently.
        found = ctx.formulas.rms_norm_backward(gradients[0].contiguous(), *ctx.saved_tensors)
        return *found, None, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up_2f: torch.Tensor, formulas: Formulas) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up_2f)
        ctx.formulas = formulas
        return formulas.swiglu(gate_and_up_2f)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.formulas.swiglu_backward(gradients[0], *ctx.saved_tensors), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_sbnd: torch.Tensor,
        key_sbnd: torch.Tensor,
        cosine_s11d: torch.Tensor,
        sine_s11d: torch.Tensor,
        formulas: Formulas,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cosine_s11d, sine_s11d)
        ctx.formulas = formulas
        return formulas.rotate((query_sbnd, key_sbnd), cosine_s11d, sine_s11d, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.formulas.rotate(gradients, *ctx.saved_tensors, -1), None, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_tv: torch.Tensor,
        labels_t: torch.Tensor,
        cap: float | None,
        group: torch.distributed.ProcessGroup,
        formulas: Formulas,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = logits_tv.size(-1)
        local_t = labels_t - width * group.rank()
        is_here_t = (local_t >= 0) & (local_t < width)
        local_t1 = local_t.where(is_here_t, 0).unsqueeze(-1)
        # Of this rank's part of the vocabulary.
        peak_t, sum_t, label_t = formulas.loss_parts(logits_tv, local_t1, cap)
        highest_t = peak_t
        if group.size() > 1:
            highest_t = peak_t.clone()
            torch.distributed.all_reduce(highest_t, op=torch.distributed.ReduceOp.MAX, group=group)
            sums = torch.stack((sum_t * (peak_t - highest_t).exp(), label_t.where(is_here_t, 0)))
            torch.distributed.all_reduce(sums, group=group)
            sum_t, label_t = sums
        log_z_t = sum_t.log() + highest_t
        ctx.save_for_backward(logits_tv, log_z_t, local_t1, is_here_t)
        ctx.cap, ctx.formulas = cap, formulas
        return log_z_t - label_t, log_z_t

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_loss_t, of_log_z_t = gradients
        logits_tv, log_z_t, local_t1, is_here_t = ctx.saved_tensors
        of_softmax_t1 = (of_loss_t + of_log_z_t).unsqueeze(-1)
        of_label_t1 = -of_loss_t.where(is_here_t, 0).unsqueeze(-1)
        ctx.formulas.loss_gradient_(logits_tv, log_z_t, of_softmax_t1, local_t1, of_label_t1, ctx.cap)
        return logits_tv, None, None, None, None
