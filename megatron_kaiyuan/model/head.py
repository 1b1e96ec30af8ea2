"""Soft-capped logits: c * tanh(z / c), in FP32 whatever the precision of the network.

Source: Gemma 2 (arXiv 2408.00118) for the form, arXiv 2512.07612 for its use against FP16 overflow.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel


class _SoftCap(torch.autograd.Function):
    """c * tanh(z / c) has the derivative 1 - tanh(z / c)^2: one kernel back instead of three."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, cap: float) -> torch.Tensor:
        # FP64 for tests of the gradient.
        bounded = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap).tanh_()
        ctx.save_for_backward(bounded)
        ctx.dtype = logits.dtype
        # A tensor of its own: megatron-core's cross-entropy overwrites the logits it is given.
        return bounded * cap

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bounded,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], bounded).to(ctx.dtype), None


def soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Bound logits to (-cap, cap); the result is a new tensor of the same shape in FP32, of FP64 logits in FP64."""
    return _SoftCap.apply(logits, cap)


def cap_logits(model: GPTModel, cap: float) -> None:
    """Make a GPTModel's output layer return soft-capped logits; a stage without the head is left alone."""
    if model.post_process:
        model.output_layer.register_forward_hook(lambda layer, inputs, output: (soft_cap(output[0], cap), *output[1:]))


def compute_in_fp32(model: GPTModel) -> None:
    """Let a GPTModel's final norm and output layer compute in FP32; a stage without the head is left alone.

    The weights stay in the precision of the network, as megatron-core's Float16Module keeps them, and are up-cast
    exactly: activations and logits are not rounded to half precision, nor are their gradients. The gradient of the
    weight is, once, when it leaves the product.
    """
    if model.post_process:
        model.decoder.final_layernorm.output_dtype = torch.float32
        model.output_layer.register_forward_pre_hook(
            lambda layer, inputs, options: (inputs, {**options, "weight": layer.weight.float()}), with_kwargs=True
        )
