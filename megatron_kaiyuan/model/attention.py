"""Rotary self-attention, and causal core attention by a kernel of `backend/`.

megatron-core's local core attention builds the whole [s, s] score matrix and expands the key heads; this one does so
under a mask only.
Tensor suffixes: s sequence, b batch, n query heads, g key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_kaiyuan import platform
from megatron_kaiyuan.backend.choose import TORCH, Backend
from megatron_kaiyuan.platform.precisions import DTYPES


class RotarySelfAttention(SelfAttention):
    """megatron-core's, with queries and keys rotated by one operation of `backend/` instead of a dozen.

    Other forms of rotation (interleaved, of a part of the head, not in every layer) and inference stay megatron-core's.
    """

    _angles_s11d: torch.Tensor | None = None

    def __init__(self, *args: Any, backend: Backend = TORCH, **options: Any):
        super().__init__(*args, **options)
        self._rotate = backend.rope

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        inference_context: Any = None,
        rotary_pos_emb: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As megatron-core's; [s, b, h] to ([s, b, h], no bias)."""
        if (
            inference_context is None
            and isinstance(rotary_pos_emb, torch.Tensor)
            and rotary_pos_emb.size(-1) == self.hidden_size_per_attention_head
            and not (self.config.rotary_interleaved or self.config.no_rope_freq)
        ):
            # Kept for the call below: megatron-core rotates nothing then.
            self._angles_s11d, rotary_pos_emb = rotary_pos_emb, None
        return super().forward(
            hidden_states,
            attention_mask,
            *args,
            inference_context=inference_context,
            rotary_pos_emb=rotary_pos_emb,
            **options,
        )

    def get_query_key_value_tensors(self, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        """Return a sub-layer's queries [s, b, n, d], keys and values [s, b, g, d]; after QK-norm, rotated."""
        query_sbnd, key_sbgd, value_sbgd = super().get_query_key_value_tensors(*args, **options)
        angles_s11d, self._angles_s11d = self._angles_s11d, None
        if angles_s11d is not None:
            query_sbnd, key_sbgd = self._rotate(query_sbnd, key_sbgd, angles_s11d)
        return query_sbnd, key_sbgd, value_sbgd


class CausalAttention(MegatronModule):
    """Drop-in for megatron-core's `core_attention`: full causal attention with grouped key/value heads."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        backend: Backend = TORCH,
        **_: Any,
    ):
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or attention_type != "self" or config.context_parallel_size > 1:
            raise ValueError("CausalAttention does causal self-attention without context parallelism only")
        self.softmax_scale, self._backend = softmax_scale, backend
        self._emulated = {DTYPES[name] for name in platform.emulated()}

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
        """Attend causally within each sequence, or within each document of it; returns [s, b, n * d].

        Args:
            attention_mask: number of the document that each token belongs to, [b, s]; None: all are one. Or Megatron's
                mask, boolean [b or 1, 1, s, s], true where a query (row) must not see a key, which says causality
                too. Stock Megatron-LM makes one by default, which costs speed and says no more than None unless it was
                given --reset-attention-mask: --no-create-attention-mask-in-dataloader leaves it out.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("CausalAttention takes no bias and no packed sequences")
        query_bnsd, *key_and_value = (part.permute(1, 2, 0, 3) for part in (query_sbnd, key_sbgd, value_sbgd))
        attend = self._choose(attention_mask)
        if query_sbnd.dtype in self._emulated:
            output_bnsd = _InFp32.apply(attend, query_bnsd, *key_and_value)
        else:
            output_bnsd = attend(query_bnsd, *key_and_value)
        return output_bnsd.permute(2, 0, 1, 3).flatten(2)

    def _choose(self, attention_mask: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        """A function of queries, keys and values."""
        if attention_mask is None:
            attend: Callable[..., torch.Tensor] = self._backend.attention
        elif attention_mask.dtype == torch.bool:
            attend = self._backend.masked_attention
        else:
            attend = self._backend.document_attention
        return lambda *tensors: attend(*tensors, self.softmax_scale, attention_mask)


class _InFp32(torch.autograd.Function):
    """A function of half-precision tensors, computed in FP32; again in the backward pass, so that no FP32 is kept."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*(part.float() for part in inputs)).to(inputs[0].dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exact = [part.detach().float().requires_grad_() for part in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.function(*exact)
        found = torch.autograd.grad(output, exact, gradients[0].float())
        return None, *(gradient.to(gradients[0].dtype) for gradient in found)
