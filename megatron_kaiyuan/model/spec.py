"""Which module stands in which place of megatron-core's transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_kaiyuan.backend.choose import TORCH, Backend
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model.attention import CausalAttention, RotarySelfAttention
from megatron_kaiyuan.model.mlp import Swiglu
from megatron_kaiyuan.model.norm import RMSNorm, SandwichLayer


def kaiyuan_layer_spec(model: ModelConfig | None = None, backend: Backend = TORCH) -> ModuleSpec:
    """One transformer layer: a norm before attention and before the MLP and, with `sandwich_norm`, one after each.

    Args:
        model: its sizes do not count here; None: the additions that every preset has.

    With `fp32_residual` an FP32 residual stream stays one; `fp32_residual_connection` of the configuration makes one.
    """
    model = model or ModelConfig.model_validate({"preset": "kaiyuan-tiny"})
    add = _get_promoting_add if model.fp32_residual else get_bias_dropout_add
    norm = norm_spec(model, backend)
    head_norm = norm if model.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=RotarySelfAttention,
        params={"attn_mask_type": AttnMaskType.causal, "backend": backend},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=ModuleSpec(CausalAttention, {"backend": backend}),
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    mlp = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(
            linear_fc1=ColumnParallelLinear,
            linear_fc2=RowParallelLinear,
            activation_func=ModuleSpec(Swiglu, {"kernel": backend.swiglu}),
        ),
    )
    return ModuleSpec(
        module=SandwichLayer if model.sandwich_norm else TransformerLayer,
        params={"norm": norm} if model.sandwich_norm else {},
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=add,
        ),
    )


def _get_promoting_add(training: bool, fused: bool) -> Callable[..., torch.Tensor]:
    """In place of megatron-core's, which rounds the residual stream to the precision of what is added to it."""
    return lambda output_and_bias, residual, dropout: residual + output_and_bias[0]


def kaiyuan_block_spec(
    config: TransformerConfig, layer: ModuleSpec, norm: ModuleSpec, virtual_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of a virtual one, closed by a norm on the last one."""
    layers = get_num_layers_to_build(config, virtual_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)


def norm_spec(model: ModelConfig, backend: Backend = TORCH) -> ModuleSpec:
    """The one kind of norm that stands in every place of a network."""
    return ModuleSpec(RMSNorm, {"kernel": backend.norm})
