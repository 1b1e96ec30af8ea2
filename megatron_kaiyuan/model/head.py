"""An output layer that computes in FP32."""

from __future__ import annotations

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
        model.output_layer.register_forward_pre_hook(
            lambda layer, inputs, options: (inputs, {**options, "weight": layer.weight.float()}), with_kwargs=True
        )
