"""FLOPs of a step and how long it takes, from a peak, an assumed utilization and the links between devices.

An estimate, where memory is an account: it orders layouts and says days to within some tens of percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.config import ModelConfig, RunConfig
from megatron_kaiyuan.network import head_weights, layer_weights
from megatron_kaiyuan.planning.communication import Communication, communication
from megatron_kaiyuan.planning.parameters import Stage, distinct_stages
from megatron_kaiyuan.platform.figures import Device

# Of a link's figure in large collectives (ours).
LINK_EFFICIENCY = 0.8
# A backward pass multiplies twice for each product of the forward pass.
_PASSES = 3


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


def speed(run: RunConfig, world_size: int, device: Device, mfu: float) -> Speed | None:
    """How fast a layout is; None where the device's peak is not known.

    The slowest stage sets the pace, `m + (p - 1) / v` micro-batches of it make a step, v chunks a stage. Collectives of
    tensor parallelism and sends between stages are waited for; those of the gradients too, but for the last
    micro-batch's backward pass where `overlap_grad_reduce` is on, and those of the weights, but for the first one's
    forward pass where `overlap_param_gather` is. Links that are not known cost nothing.
    """
    peak = device.peak_tflops(run.train.precision)
    if peak is None:
        return None
    parallel = run.parallel
    stages = [(stage, communication(stage)) for stage in distinct_stages(run, world_size)]
    rate = parallel.tensor_model_parallel_size * peak * 1e12 * mfu
    pace = max(_stage_flops(stage) / rate + _waiting_seconds(stage, sent, device) for stage, sent in stages)
    last = stages[-1][0]
    # A stage of several chunks waits for one chunk's time where others wait for a whole one's.
    ticks = last.micro_batches + (parallel.pipeline_model_parallel_size - 1) / last.chunks
    link = _data_parallel_link(device, last)
    forward = _stage_flops(last) / rate / _PASSES
    reduce = max(sent.gradients for _, sent in stages) / link
    gather = max(sent.weights for _, sent in stages) / link
    if parallel.overlap_grad_reduce:
        reduce = max(0.0, reduce - (_PASSES - 1) * forward)
    if parallel.overlap_param_gather:
        gather = max(0.0, gather - forward)
    seconds = ticks * pace + reduce + gather
    return Speed(
        step_seconds=seconds,
        tokens_per_second=run.train.tokens_per_step / seconds,
        tflops_per_gpu=flops_per_step(run) / seconds / world_size / 1e12,
    )


def _layer_flops(model: ModelConfig, seq_length: int, causal: bool = True) -> float:
    """For one token; causal attention sees half of the sequence on average."""
    weights = sum(weight.size for weight in layer_weights(model) if weight.is_matrix)
    scores_and_values = 2 * model.num_attention_heads * model.kv_channels * seq_length / (2 if causal else 1)
    return 2 * _PASSES * (weights + scores_and_values)


def recomputed_flops(run: RunConfig) -> float:
    """What the backward pass of a layer computes again, for one token; no part of the model FLOPs."""
    model, recomputed = run.model, run.parallel.recomputed
    if "layer" in recomputed:
        return _layer_flops(model, run.train.seq_length) / _PASSES
    mlp = 2 * sum(weight.size for weight in layer_weights(model) if weight.kind in ("fc1", "fc2"))
    scores_and_values = 2 * model.num_attention_heads * model.kv_channels * run.train.seq_length
    return mlp * ("mlp" in recomputed) + scores_and_values * ("core_attn" in recomputed)


def _head_flops(model: ModelConfig) -> float:
    return 2 * _PASSES * sum(weight.size for weight in head_weights(model) if weight.is_matrix)


def _stage_flops(stage: Stage) -> float:
    """Of one micro-batch; the last stage has the head besides its layers."""
    run = stage.run
    tokens = run.train.micro_batch_size * run.train.seq_length
    layer = _layer_flops(run.model, run.train.seq_length) + recomputed_flops(run)
    return tokens * (stage.layers * layer + stage.is_last * _head_flops(run.model))


def _waiting_seconds(stage: Stage, sent: Communication, device: Device) -> float:
    """For other tensor-parallel ranks and for the neighbouring stages, for one micro-batch."""
    tensor = sent.tensor / _link(device, spans=stage.run.parallel.tensor_model_parallel_size)
    return (tensor + sent.pipeline / _link(device, spans=stage.world_size)) / stage.micro_batches


def _data_parallel_link(device: Device, stage: Stage) -> float:
    """Bytes a second of each rank in a collective over data-parallel ranks.

    Tensor-parallel ranks are neighbours, data-parallel ones come next. Over several nodes a library runs a ring for
    each network card that the group's ranks in a node have, so that together they send through all of these, as far as
    the links within the node allow.
    """
    tensor = stage.run.parallel.tensor_model_parallel_size
    spans = tensor * stage.data_parallel_size
    within = _link(device, spans=min(spans, device.per_node))
    if spans <= device.per_node:
        return within
    cards = max(1, device.per_node // tensor)
    return min(within, cards * _link(device, spans))


def _link(device: Device, spans: int) -> float:
    """Bytes a second between ranks that lie within so many neighbouring ones; endless where it is not known."""
    figure = device.node_gb_per_second if spans <= device.per_node else device.network_gb_per_second
    return float("inf") if figure is None else figure * 1e9 * LINK_EFFICIENCY
