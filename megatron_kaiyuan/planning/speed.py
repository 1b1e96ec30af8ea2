"""FLOPs of a step and how long it takes, from a peak, an assumed utilization and the links between devices.

An estimate, where memory is an account: it orders layouts and says days to within some tens of percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.config import ModelConfig, RunConfig
from megatron_kaiyuan.network import head_weights, layer_weights
from megatron_kaiyuan.planning.parameters import PipelineStage, distinct_stages
from megatron_kaiyuan.planning.stage_time import PASSES, StageTime, stage_time
from megatron_kaiyuan.platform.datasheets import Device

# Time of a FLOP of attention over one of another product: scores are computed again in the backward pass (7 products
# for 6), in a kernel that reaches less of the peak. 1.44 on A100s, from a network at 2,048 and 8,192 tokens (arXiv
# 2311.05610).
_ATTENTION_COST = 1.5


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


def speed(run: RunConfig, world_size: int, device: Device, mfu: float, tensor_overlap: bool = True) -> Speed | None:
    """How fast a layout is; None where the device's peak is not known.

    The slowest stage sets the pace of the micro-batches; the first one passes all others too, chunk by chunk where a
    stage has several. Then what is waited for of the collectives (`planning/stage_time.py`). Links that are not known
    cost nothing.

    Args:
        mfu: part of the peak that the matrix products of a stage reach.
        tensor_overlap: see `stage_time`.
    """
    peak = device.peak_tflops(run.train.precision)
    if peak is None:
        return None
    parallel = run.parallel
    rate = parallel.tensor_model_parallel_size * peak * 1e12 * mfu
    stages = distinct_stages(run, world_size)
    times = [stage_time(stage, device, stage_work(stage), rate, tensor_overlap) for stage in stages]
    # Those between the first and the last are alike.
    every = [times[0], *times[1:-1] * (parallel.pipeline_model_parallel_size - 2), *times[1:][-1:]]
    slowest = max(one.micro_batch for one in every)
    fill = (sum(one.micro_batch for one in every) - slowest) / stages[0].chunks
    seconds = stages[0].micro_batches * slowest + fill + _gradients(every, stages[0].chunks) + _weights(run, every)
    return Speed(
        step_seconds=seconds,
        tokens_per_second=run.train.tokens_per_step / seconds,
        tflops_per_gpu=flops_per_step(run) / seconds / world_size / 1e12,
    )


def _gradients(stages: list[StageTime], chunks: int) -> float:
    """How much longer than the last backward pass, the first stage's, the gradients' reduction takes.

    A stage ends its last backward pass before those before it do theirs.
    """
    longest = ahead = 0.0
    for stage in stages:
        longest = max(longest, stage.gradients - ahead)
        ahead += stage.micro_batch * (PASSES - 1) / PASSES / chunks
    return longest


def _weights(run: RunConfig, stages: list[StageTime]) -> float:
    """How long weights are waited for: with overlap when the first micro-batch comes to a stage, else all at once."""
    waits = [stage.weights for stage in stages]
    return sum(waits) if run.parallel.overlap_param_gather else max(waits)


def _layer_flops(model: ModelConfig, seq_length: int, causal: bool = True) -> float:
    """Model FLOPs for one token."""
    weights = sum(weight.size for weight in layer_weights(model) if weight.is_matrix)
    return 2 * PASSES * (weights + _pairs(model, seq_length, causal))


def recomputed_flops(run: RunConfig) -> float:
    """What the backward pass of a layer computes again, for one token; no part of the model FLOPs."""
    model, recomputed = run.model, run.parallel.recomputed
    if "layer" in recomputed:
        return _layer_flops(model, run.train.seq_length) / PASSES
    mlp = 2 * sum(weight.size for weight in layer_weights(model) if weight.kind in ("fc1", "fc2"))
    return mlp * ("mlp" in recomputed) + 2 * _pairs(model, run.train.seq_length) * ("core_attn" in recomputed)


def _head_flops(model: ModelConfig) -> float:
    return 2 * PASSES * sum(weight.size for weight in head_weights(model) if weight.is_matrix)


def stage_work(stage: PipelineStage) -> float:
    """FLOPs of one micro-batch that take time; the last stage has the head besides its layers."""
    run = stage.run
    tokens = run.train.micro_batch_size * run.train.seq_length
    layer = _layer_flops(run.model, run.train.seq_length) + recomputed_flops(run)
    layer += (_ATTENTION_COST - 1) * PASSES * 2 * _pairs(run.model, run.train.seq_length)
    return tokens * (stage.layers * layer + stage.is_last * _head_flops(run.model))


def _pairs(model: ModelConfig, seq_length: int, causal: bool = True) -> float:
    """Multiplications of scores and values for one token, forward; causal attention sees half of the sequence."""
    return 2 * model.num_attention_heads * model.kv_channels * seq_length / (2 if causal else 1)
