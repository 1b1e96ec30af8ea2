"""Soft-capped logits: c * tanh(z / c), in FP32 whatever the precision of the network.

Source: Gemma 2 (arXiv 2408.00118) for the form, arXiv 2512.07612 for its use against FP16 overflow.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel


def soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Bound logits to (-cap, cap); the result is a new FP32 tensor of the same shape."""
    # Out of place, twice: megatron-core's cross-entropy overwrites the logits it is given, and the
    # backward pass of tanh needs its own output untouched.
    return torch.tanh(logits.float() / cap) * cap


def cap_logits(model: GPTModel, cap: float) -> None:
    """Make a GPTModel's output layer return soft-capped logits; a stage without the head is left alone."""
    if model.post_process:
        model.output_layer.register_forward_hook(lambda layer, inputs, output: (soft_cap(output[0], cap), *output[1:]))
