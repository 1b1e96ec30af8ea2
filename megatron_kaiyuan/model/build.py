"""From a recipe to a megatron-core GPTModel on this rank."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.model.head import cap_logits
from megatron_kaiyuan.model.norm import PostNormLinear
from megatron_kaiyuan.model.spec import kaiyuan_block_spec, kaiyuan_layer_spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def transformer_config(model: ModelConfig, parallel: ParallelConfig, precision: str = "fp32") -> TransformerConfig:
    """megatron-core's own configuration of the same network."""
    dtype = DTYPES[precision]
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        qk_layernorm=model.qk_layernorm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_method_std,
        embedding_init_method_std=model.embedding_init_method_std,
        # Weights are drawn whole on the CPU and then cut, so that they do not depend on the tensor-parallel size.
        use_cpu_initialization=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        # These fusions need Apex or a compiler; the modules of model/ do without them.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def build_model(
    model: ModelConfig, config: TransformerConfig, pre_process: bool | None = None, post_process: bool | None = None
) -> GPTModel:
    """This rank's part of the network, on the CPU, with fresh weights from torch's generator.

    Args:
        pre_process: has the embedding; default: on the first stage of the pipeline.
        post_process: has the final norm and the head; default: on its last stage.

    Inputs of its forward: token ids [b, s] and position ids [b, s]; with labels [b, s] it returns the loss
    of each token [b, s] in FP32, without them FP32 logits [b, s, padded vocabulary / tensor ranks].
    """
    layer = kaiyuan_layer_spec(model.sandwich_norm, model.qk_layernorm)
    network = GPTModel(
        config=config,
        transformer_layer_spec=kaiyuan_block_spec(config, layer),
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage() if pre_process is None else pre_process,
        post_process=parallel_state.is_pipeline_last_stage() if post_process is None else post_process,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
    )
    for module in network.modules():
        if isinstance(module, PostNormLinear):
            torch.nn.init.constant_(module.post_norm.weight, model.post_norm_initial_gain)
    if model.logits_soft_cap is not None:
        cap_logits(network, model.logits_soft_cap)
    return network
