"""FLOPs of a step and how long it takes, from a peak, an assumed utilization and the links between devices.

An estimate, where memory is an account: it orders layouts and says days to within some tens of percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.config import ModelConfig, RunConfig
from megatron_kaiyuan.planning.parameters import BYTES, Stage, held
from megatron_kaiyuan.platform.figures import Device

# Utilization of a stage at work, without waiting for others. Puro-2B, the same shape on Megatron Core 0.16 with
# Transformer Engine (arXiv 2608.27370), did 238 TFLOP/s a GPU on 24 GPUs with two stages, of which the last has the
# head and 0.59 of the work, so that the other waits: 238 / 989 / 0.85. Its four stages on 96 GPUs, 192, give 0.30.
ASSUMED_MFU = 0.28
MFU_SOURCE = "Puro-2B on Megatron Core 0.16, arXiv 2608.27370: 238 TFLOP/s a GPU, taken for an H100's"
# Of a link's figure in large collectives (ours).
LINK_EFFICIENCY = 0.8
# A backward pass multiplies twice for each product of the forward pass.
_PASSES = 3
_GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Speed:
    """How fast a layout is.

    Attributes:
        step_seconds: of one global batch.
        tflops_per_gpu: model FLOPs, 1e12 a second.
    """

    step_seconds: float
    tokens_per_second: float
    tflops_per_gpu: float


def flops_per_token(run: RunConfig, causal: bool = True) -> float:
    """Model FLOPs of a token: all matrix products, forward and backward; nothing is computed twice.

    Args:
        causal: attention counts the pairs of tokens that a causal mask leaves, half of them, as they are computed; else
            all of them, as most papers count (PaLM, arXiv 2204.02311, appendix B).
    """
    return run.model.num_layers * _layer_flops(run.model, run.train.seq_length, causal) + _head_flops(run.model)


def flops_per_step(run: RunConfig) -> float:
    """Model FLOPs of a global batch, causal."""
    return run.train.tokens_per_step * flops_per_token(run)


def parameters(model: ModelConfig) -> int:
    """Of the whole network, padded vocabulary included."""
    hidden, query = model.hidden_size, model.num_attention_heads * model.kv_channels
    keys = model.num_query_groups * model.kv_channels
    norms = (4 if model.sandwich_norm else 2) * hidden + (2 * model.kv_channels if model.qk_layernorm else 0)
    layer = (2 * query + 2 * keys + 3 * model.ffn_hidden_size) * hidden + norms
    return model.num_layers * layer + 2 * model.padded_vocab_size * hidden + hidden * (1 + model.embedding_norm)


def speed(run: RunConfig, world_size: int, device: Device, mfu: float) -> Speed | None:
    """How fast a layout is; None where the device's peak is not known.

    The slowest stage sets the pace, `m + (p - 1) / v` micro-batches of it make a step, v chunks a stage.
    Collectives of tensor parallelism and
    between stages are waited for; those of the gradients too, but for the last micro-batch's backward pass where
    `overlap_grad_reduce` is on. Links that are not known cost nothing.
    """
    peak = device.peak_tflops(run.train.precision)
    if peak is None:
        return None
    parallel = run.parallel
    stage = Stage(run, world_size, 0)
    compute = _slowest_stage_flops(run) / (parallel.tensor_model_parallel_size * peak * 1e12 * mfu)
    # A stage of several chunks waits for one chunk's time where others wait for a whole one's.
    ticks = stage.micro_batches + (parallel.pipeline_model_parallel_size - 1) / stage.chunks
    reduce = _gradient_seconds(stage, device)
    if parallel.overlap_grad_reduce:
        reduce = max(0.0, reduce - compute * (_PASSES - 1) / _PASSES)
    seconds = ticks * (compute + _tensor_seconds(stage, device) + _pipeline_seconds(stage, device)) + reduce
    return Speed(
        step_seconds=seconds,
        tokens_per_second=run.train.tokens_per_step / seconds,
        tflops_per_gpu=flops_per_step(run) / seconds / world_size / 1e12,
    )


def _layer_flops(model: ModelConfig, seq_length: int, causal: bool = True) -> float:
    """For one token; causal attention sees half of the sequence on average."""
    query, keys = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    weights = (2 * query + 2 * keys + 3 * model.ffn_hidden_size) * model.hidden_size
    scores_and_values = 2 * query * seq_length / (2 if causal else 1)
    return 2 * _PASSES * (weights + scores_and_values)


def recomputed_flops(run: RunConfig) -> float:
    """What the backward pass of a layer computes again, for one token; no part of the model FLOPs."""
    model, recomputed = run.model, run.parallel.recomputed
    if "layer" in recomputed:
        return _layer_flops(model, run.train.seq_length) / _PASSES
    mlp = 2 * 3 * model.ffn_hidden_size * model.hidden_size
    scores_and_values = 2 * model.num_attention_heads * model.kv_channels * run.train.seq_length
    return mlp * ("mlp" in recomputed) + scores_and_values * ("core_attn" in recomputed)


def _head_flops(model: ModelConfig) -> float:
    return 2 * _PASSES * model.padded_vocab_size * model.hidden_size


def _slowest_stage_flops(run: RunConfig) -> float:
    """Of one micro-batch in the last stage, which has the head besides its layers."""
    layers = run.model.num_layers // run.parallel.pipeline_model_parallel_size
    tokens = run.train.micro_batch_size * run.train.seq_length
    layer = _layer_flops(run.model, run.train.seq_length) + recomputed_flops(run)
    return tokens * (layers * layer + _head_flops(run.model))


def _hidden_bytes(run: RunConfig) -> int:
    return run.train.micro_batch_size * run.train.seq_length * run.model.hidden_size * BYTES[run.train.precision]


def _tensor_seconds(stage: Stage, device: Device) -> float:
    """Two all-reduces a layer in either direction, for one micro-batch; with sequence parallelism as much in parts.

    What is recomputed sends again.
    """
    run, ranks = stage.run, stage.run.parallel.tensor_model_parallel_size
    recomputed = run.parallel.recomputed
    reductions = 4 + 2 * ("layer" in recomputed) + ("mlp" in recomputed)
    sent = reductions * stage.layers * 2 * (ranks - 1) / ranks * _hidden_bytes(run)
    return sent / _link(device, spans=ranks)


def _pipeline_seconds(stage: Stage, device: Device) -> float:
    """To the next stage and back, for one micro-batch, from each chunk."""
    run = stage.run
    if run.parallel.pipeline_model_parallel_size == 1:
        return 0.0
    share = run.parallel.tensor_model_parallel_size if run.parallel.sequence_parallel else 1
    stream = (
        _hidden_bytes(run)
        // BYTES[run.train.precision]
        * BYTES["fp32" if run.model.fp32_residual else run.train.precision]
    )
    return 2 * stage.chunks * stream / share / _link(device, spans=stage.world_size)


def _gradient_seconds(stage: Stage, device: Device) -> float:
    """FP32 gradients to the ranks that own them and weights back, or an all-reduce of the gradients."""
    ranks = stage.data_parallel_size
    fullest = max(held(Stage(stage.run, stage.world_size, index)).parameters for index in _ends(stage.run))
    bytes_each = _GRADIENT_BYTES + BYTES[stage.run.train.precision]
    if not stage.run.parallel.use_distributed_optimizer:
        bytes_each = 2 * _GRADIENT_BYTES
    sent = fullest * bytes_each * (ranks - 1) / ranks
    return sent / _link(device, spans=ranks * stage.run.parallel.tensor_model_parallel_size)


def _ends(run: RunConfig) -> set[int]:
    return {0, run.parallel.pipeline_model_parallel_size - 1}


def _link(device: Device, spans: int) -> float:
    """Bytes a second between ranks that lie within so many neighbouring ones; endless where it is not known."""
    figure = device.node_gb_per_second if spans <= device.per_node else device.network_gb_per_second
    return float("inf") if figure is None else figure * 1e9 * LINK_EFFICIENCY
