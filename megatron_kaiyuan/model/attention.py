"""Causal core attention through torch's scaled_dot_product_attention.

megatron-core's local one builds the whole [s, s] score matrix and expands the key heads; this one does
neither. Tensor suffixes: s sequence, b batch, n query heads, g key/value heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class CausalAttention(MegatronModule):
    """Drop-in for megatron-core's `core_attention`: full causal attention with grouped key/value heads."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ):
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or attention_type != "self" or config.context_parallel_size > 1:
            raise ValueError("CausalAttention does causal self-attention without context parallelism only")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend within each sequence; returns [s, b, n * d].

        The mask type is causal, so that a mask tensor, which stock Megatron-LM passes along, says nothing more.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("CausalAttention takes no bias and no packed sequences")
        output_bnsd = torch.nn.functional.scaled_dot_product_attention(
            query_sbnd.permute(1, 2, 0, 3),
            key_sbgd.permute(1, 2, 0, 3),
            value_sbgd.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query_sbnd.size(2) != key_sbgd.size(2),
        )
        return output_bnsd.permute(2, 0, 1, 3).flatten(2)
