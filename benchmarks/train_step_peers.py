"""The training step of other trainers, which `benchmarks.train_step` compares ours with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.train_step_case import Case, Step, random_tokens, recipe_of, serve
from megatron_kaiyuan.platform.precisions import DTYPES


def serve_hugging_face(case: Case, autocast: bool, liger: bool, compiled: bool, pipe: Any) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = case.shape
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_size,
        max_position_embeddings=shape.seq_length,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    network = Qwen3ForCausalLM(config)
    for layer in network.model.layers if compiled else ():
        layer.compile()

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        # It shifts its labels itself.
        return network(input_ids=tokens_bs[:, :-1], labels=tokens_bs[:, :-1]).loss

    serve_plain_torch(case, network, loss, autocast, pipe)


def serve_litgpt(case: Case, autocast: bool, compiled: bool, pipe: Any) -> None:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = case.shape
    config = Config(
        block_size=shape.seq_length,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_query_groups=shape.groups,
        n_embd=shape.hidden,
        head_size=shape.head_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_qk=True,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.ffn,
    )
    network = GPT(config)
    for layer in network.transformer.h if compiled else ():
        layer.compile()

    def loss(tokens_bs: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(network(tokens_bs[:, :-1]), tokens_bs[:, 1:].contiguous(), chunk_size=0)

    serve_plain_torch(case, network, loss, autocast, pipe)


def serve_plain_torch(
    case: Case, network: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], autocast: bool, pipe: Any
) -> None:
    dtype, micro_batch = DTYPES[case.precision], case.shape.micro_batch
    pipe.recv()
    network.to(case.platform, torch.float32 if autocast else dtype)
    optimizer = adamw(network)
    scaler = torch.amp.GradScaler(case.platform, enabled=case.precision == "fp16")
    tokens_bs = random_tokens(case)

    def step() -> None:
        for part_bs in tokens_bs.split(micro_batch):
            with torch.autocast(case.platform, dtype, enabled=autocast):
                found = loss(part_bs) * (len(part_bs) / len(tokens_bs))
            scaler.scale(found).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    serve(case, step, network, pipe)


def adamw(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def serve_torchtitan(case: Case, compiled: bool, recorded: bool, pipe: Any) -> None:
    """Its Qwen3 and its step, put together as its trainer does on one device. The trainer itself runs on GPUs only.

    Args:
        compiled: each layer and the loss by torch.compile.
        recorded: forward and backward of a micro-batch as a CUDA graph.
    """
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.config import CompileConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.compile import apply_compile
    from torchtitan.distributed.cudagraph import cudagraph_teardown, wrap_with_cuda_graph
    from torchtitan.distributed.fsdp import apply_fsdp_to_decoder
    from torchtitan.distributed.utils import clip_grad_norm_

    with torch.device("meta"):
        network = torchtitan_config(case).build()
    compilation = CompileConfig(enable=compiled)
    if compiled:
        alone = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, world_size=1)
        apply_compile(network, compile_config=compilation, parallel_dims=alone)
    pipe.recv()
    torch.autograd.set_multithreading_enabled(False)
    torch.distributed.init_process_group(rank=0, world_size=1, store=torch.distributed.HashStore())
    # Its mixed precision is FSDP's, on one device too: FP32 weights and gradients, casts of a layer's when it runs.
    mesh = torch.distributed.init_device_mesh(case.platform, (1,), mesh_dim_names=("fsdp",))
    apply_fsdp_to_decoder(network, mesh, DTYPES[case.precision], torch.float32, pp_enabled=False)
    network.to_empty(device=case.platform)
    with torch.no_grad():
        network.init_weights()
    loss_of = ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config()).build(compile_config=compilation)
    loss_of.set_lm_head(network.lm_head)  # applied to an eighth of the tokens at a time
    network._skip_lm_head = True
    optimizer = adamw(network)

    def passes(inputs_bs: torch.Tensor, labels_bs: torch.Tensor, tokens: torch.Tensor, more: Any) -> torch.Tensor:
        loss, _ = loss_of(network(inputs_bs, **more), labels_bs, tokens)
        loss.backward()
        return loss

    run_passes = wrap_with_cuda_graph(passes) if recorded else passes
    tokens_bs, tokens, shape = random_tokens(case), torch.tensor(case.tokens, device=case.platform), case.shape
    positions_bs = torch.arange(shape.seq_length, device=case.platform).repeat(shape.micro_batch, 1)

    def step() -> None:
        for part_bs in tokens_bs.split(shape.micro_batch):
            more: dict[str, Any] = {"positions": positions_bs}
            if case.platform == "cuda":
                more["attention_masks"] = network.get_attention_masks(positions_bs)
            run_passes(part_bs[:, :-1].contiguous(), part_bs[:, 1:].contiguous(), tokens, more)
        clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not recorded)

    serve(case, step, network, pipe)
    cudagraph_teardown()
    torch.distributed.destroy_process_group()


def torchtitan_config(case: Case) -> Any:
    """Its Qwen3 with a head of its own. Its attention, torch's FlexAttention, has no backward pass on a CPU."""
    from torchtitan.models import qwen3
    from torchtitan.models.common import CosSinRoPE, Embedding, Linear
    from torchtitan.models.common.attention import ScaledDotProductAttention

    shape = case.shape
    layers = qwen3._build_qwen3_layers(
        n_layers=shape.layers,
        dim=shape.hidden,
        n_heads=shape.heads,
        n_kv_heads=shape.groups,
        head_dim=shape.head_size,
        hidden_dim=shape.ffn,
        attn_backend="flex",
        rope=CosSinRoPE.Config(dim=shape.head_size, max_seq_len=shape.seq_length, theta=1e6),
    )
    for layer in layers if case.platform == "cpu" else ():
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return qwen3.Qwen3Model.Config(
        dim=shape.hidden,
        vocab_size=shape.vocabulary,
        layers=layers,
        norm=qwen3._qwen3_norm(shape.hidden),
        tok_embeddings=Embedding.Config(
            num_embeddings=shape.vocabulary, embedding_dim=shape.hidden, param_init=qwen3._EMBEDDING_INIT
        ),
        lm_head=Linear.Config(in_features=shape.hidden, out_features=shape.vocabulary, param_init=qwen3._LINEAR_INIT),
    )


def serve_megatron(case: Case, pipe: Any) -> None:
    pipe.recv()
    from megatron_kaiyuan import platform

    device = platform.activate(case.platform)
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        network = stock_network(case)
        serve(case, stock_step(case, network), network, pipe)


def stock_network(case: Case) -> Any:
    """Megatron Core's GPTModel with the layers of its own that need no Transformer Engine."""
    from megatron.core import tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from megatron_kaiyuan.config import ModelConfig, ParallelConfig
    from megatron_kaiyuan.model.build import transformer_config

    tensor_parallel.model_parallel_cuda_manual_seed(1)
    # What the shape says is ours too; the activation is a slot that stock layers leave empty.
    config = transformer_config(ModelConfig(**recipe_of(case.shape)), ParallelConfig(), case.precision)
    config.use_te_activation_func = False
    return GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        case.shape.vocabulary,
        case.shape.seq_length,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    ).to(case.platform)


def stock_step(case: Case, network: Any) -> Step:
    """A step of Megatron Core's own optimizer, with its mask."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    from benchmarks.cpu_platform import passes

    config = network.config
    parallel = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    inner = network if case.precision == "fp32" else Float16Module(config, network)
    models = [DistributedDataParallel(config, parallel, inner)]
    options = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        clip_grad=1.0,
        bf16=config.bf16,
        fp16=config.fp16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(options, models, use_gloo_process_groups=False)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    tokens_bs, length = random_tokens(case), case.shape.seq_length
    future = torch.ones(1, 1, length, length, dtype=torch.bool, device=case.platform).triu_(1)

    micro_batch = case.shape.micro_batch if case.platform == "cpu" else 1

    def step() -> None:
        passes(models, optimizer, tokens_bs[:, :-1], tokens_bs[:, 1:], future, micro_batch)
        optimizer.step()

    return step
