"""An output layer that computes in FP32."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel


def compute_in_fp32(model: GPTModel) -> None:
    """Let a GPTModel's final norm and output layer compute in FP32; a stage without the head is left alone.

    The weights stay in the precision of the network, as megatron-core's Float16Module keeps them, and are up-cast
    exactly: activations and logits are not rounded to half precision, nor are their gradients. The gradient of the
    weight is, once, when it leaves the product.
    """
    if model.post_process:
        # An up-cast weight has no sum of gradients.
        model.output_layer.gradient_accumulation_fusion = False
        model.decoder.final_layernorm.output_dtype = torch.float32
        layer = model.output_layer
        forward = layer.forward

        # Inside the layer's own call: hooks in front of it may still be gathering the weight (`overlap_param_gather`).
        def forward_in_fp32(
            hidden_sbh: torch.Tensor, weight: torch.Tensor | None = None, **options: Any
        ) -> tuple[torch.Tensor, None]:
            return forward(hidden_sbh, weight=layer.weight.float(), **options)

        layer.forward = forward_in_fp32
