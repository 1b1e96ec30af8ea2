"""From a recipe to a megatron-core GPTModel on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_kaiyuan.backend.choose import TORCH, Backend
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.model.head import compute_in_fp32
from megatron_kaiyuan.model.loss import set_loss
from megatron_kaiyuan.model.norm import norm_embedding
from megatron_kaiyuan.model.spec import kaiyuan_block_spec, kaiyuan_layer_spec, norm_spec
from megatron_kaiyuan.network import weight_of
from megatron_kaiyuan.platform.precisions import DTYPES


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, precision: str = "fp32", backend: Backend = TORCH
) -> TransformerConfig:
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
        # Not Transformer Engine's: the one that the layer's spec names.
        use_te_activation_func=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_method_std,
        embedding_init_method_std=model.embedding_init_method_std,
        # Weights are drawn whole on the CPU and then cut, so that they do not depend on the tensor-parallel size.
        use_cpu_initialization=True,
        params_dtype=dtype,
        pipeline_dtype=torch.float32 if model.fp32_residual else dtype,
        fp32_residual_connection=model.fp32_residual,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages,
        # Two neighbours may send to each other at once only where sends are no batch; with two ranks they always do.
        overlap_p2p_comm=parallel.virtual_stages is not None,
        batch_p2p_comm=parallel.virtual_stages is None,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        recompute_granularity=parallel.recompute_granularity,
        recompute_modules=parallel.recompute_modules,
        # Of each layer its input stays; units of several layers would keep less and hold more of them at once.
        recompute_method="uniform" if parallel.recompute_granularity == "full" else None,
        recompute_num_layers=1 if parallel.recompute_granularity == "full" else None,
        gradient_accumulation_fusion=backend.accumulates and precision != "fp32",
        # These fusions need Apex or a compiler; the modules of model/ do without them.
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


class Network(torch.nn.ModuleList):
    """This rank's part of the network, in one piece, or in one for each of its virtual pipeline stages."""

    def __init__(self, chunks: Sequence[GPTModel], backend: Backend = TORCH):
        super().__init__(chunks)
        self.chunks, self.backend = list(chunks), backend

    def sharded_state_dict(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """megatron-core's, for `load_state_dict` of this class; on disk names are those of the whole network."""
        return {
            f"{number}.{name}": value
            for number, chunk in enumerate(self.chunks)
            for name, value in chunk.sharded_state_dict(metadata=metadata).items()
        }


def build_network(
    model: ModelConfig,
    parallel: ParallelConfig,
    config: TransformerConfig,
    seed: int,
    z_loss: float = 0.0,
    backend: Backend = TORCH,
) -> Network:
    """This rank's part of the network, on the CPU; weights depend on the seed and on the number of parts in all."""
    rank, ranks = parallel_state.get_pipeline_model_parallel_rank(), parallel.pipeline_model_parallel_size
    chunks = []
    for virtual in range(parallel.virtual_pipeline_model_parallel_size):
        torch.manual_seed(seed + 100 * (virtual * ranks + rank))
        virtual_stage = None if parallel.virtual_stages is None else virtual
        chunks.append(build_model(model, config, virtual_stage, z_loss=z_loss, backend=backend))
    return Network(chunks, backend)


def build_model(
    model: ModelConfig,
    config: TransformerConfig,
    virtual_stage: int | None = None,
    pre_process: bool | None = None,
    post_process: bool | None = None,
    z_loss: float = 0.0,
    backend: Backend = TORCH,
) -> GPTModel:
    """A pipeline stage of the network, on the CPU, with fresh weights from torch's generator.

    Args:
        pre_process: has the embedding; default: on the first stage of the pipeline.
        post_process: has the final norm and the head; default: on its last stage.
        z_loss: coefficient of the z-loss whose gradient the loss has besides.
        backend: what computes the operations between the products.

    Inputs of its forward: token ids [b, s] and position ids [b, s]; with labels [b, s] it returns the loss
    of each token [b, s] in FP32, without them FP32 logits [b, s, padded vocabulary / tensor ranks].
    """
    layer, norm = kaiyuan_layer_spec(model, backend), norm_spec(model, backend)
    is_first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual_stage)
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual_stage)
    network = GPTModel(
        config=config,
        transformer_layer_spec=kaiyuan_block_spec(config, layer, norm, virtual_stage),
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=is_first if pre_process is None else pre_process,
        post_process=is_last if post_process is None else post_process,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        vp_stage=virtual_stage,
    )
    if model.embedding_norm:
        norm_embedding(network, norm)
    for name, parameter in network.named_parameters():
        if (initial := weight_of(name, model).initial) is not None:
            torch.nn.init.constant_(parameter, initial)
    if model.fp32_head:
        compute_in_fp32(network)
    set_loss(network, model.logits_soft_cap, z_loss, backend.loss)
    return network
