"""How long the ranks of one pipeline stage take for a micro-batch, and wait for gradients and weights once a step.

Waited for are: sends between stages; of tensor parallelism all collectives of the forward pass, and in the backward
pass what no product hides; of gradients and weights what `planning/overlap.py` finds, all of them without overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kaiyuan.network import GATE_AND_UP, QKV, layer_weights
from megatron_kaiyuan.planning.communication import communication
from megatron_kaiyuan.planning.links import Ring, data_ring, neighbour_bytes_per_second, tensor_ring
from megatron_kaiyuan.planning.overlap import Piece, waited_for_gradients, waited_for_weights
from megatron_kaiyuan.planning.parameters import BYTES, Bucket, PipelineStage, chunk_buckets, chunk_sizes
from megatron_kaiyuan.planning.traffic import traffic
from megatron_kaiyuan.platform.datasheets import Device

# A backward pass multiplies twice for each product of the forward pass.
PASSES = 3
# Of a memory's figure in operations between products (ours).
MEMORY_EFFICIENCY = 0.8
_FP32 = 4


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage.

    Attributes:
        micro_batch: forward and backward pass of one, with what is waited for in them.
        gradients: from the end of the stage's last backward pass until they are reduced.
        weights: that its first forward pass waits for them, or all of their gathering without overlap.
    """

    micro_batch: float
    gradients: float
    weights: float


def stage_time(
    stage: PipelineStage, device: Device, flops: float, rate: float, tensor_overlap: bool = True
) -> StageTime:
    """Seconds of a stage.

    Args:
        flops: of a micro-batch, forward and backward.
        rate: FLOPs a second of its tensor-parallel ranks together.
        tensor_overlap: products hide collectives of tensor parallelism in the backward pass.
    """
    sends = communication(stage).pipeline / stage.micro_batches / neighbour_bytes_per_second(device, stage)
    tensor = _tensor_seconds(stage, device, rate, tensor_overlap)
    micro_batch = flops / rate + _memory_seconds(stage, device) + tensor + sends
    parallel, over = stage.run.parallel, data_ring(device, stage)
    # The buffers in the order of the backward pass: the last chunk first.
    buckets = [bucket for chunk in reversed(chunk_buckets(stage)) for bucket in chunk]
    rounds = 1 if parallel.use_distributed_optimizer else 2
    reduced = _pieces(stage, buckets, over, _FP32, rounds, micro_batch * (PASSES - 1) / PASSES)
    gathered = _pieces(stage, buckets, over, BYTES[stage.run.train.precision], 1, micro_batch / PASSES)[::-1]
    gradients = waited_for_gradients(reduced) if parallel.overlap_grad_reduce else _all_of(reduced)
    weights = waited_for_weights(gathered) if parallel.overlap_param_gather else _all_of(gathered)
    return StageTime(micro_batch, gradients, weights if parallel.use_distributed_optimizer else 0.0)


def _all_of(pieces: list[Piece]) -> float:
    return sum(piece.collective for piece in pieces)


def _pieces(
    stage: PipelineStage, buckets: list[Bucket], over: Ring, element: int, rounds: int, seconds: float
) -> list[Piece]:
    """Buckets with their part of a pass of so many seconds; the table of embeddings is looked up in no time.

    Args:
        element: bytes of an element that is sent.
        rounds: of the ring, two for an all-reduce.
    """
    table = next(chunk_sizes(stage))[0] if stage.is_first else 0
    work = [sum(stop - start for start, stop in bucket.parameters) for bucket in buckets]
    # The first parameter of the first chunk is the last one in its buffer.
    work[-1] -= table
    return [
        Piece(
            compute=seconds * elements / sum(work) if sum(work) else 0.0,
            collective=rounds * over.round_seconds(bucket.elements * element),
        )
        for bucket, elements in zip(buckets, work, strict=True)
    ]


def _memory_seconds(stage: PipelineStage, device: Device) -> float:
    figure = device.memory_gb_per_second
    return 0.0 if figure is None else traffic(stage, device) / (figure * 1e9 * MEMORY_EFFICIENCY)


def _tensor_seconds(stage: PipelineStage, device: Device, rate: float, overlap: bool) -> float:
    """For other tensor-parallel ranks, for one micro-batch.

    A backward pass starts some collectives beside a product (megatron-core 0.16, tensor_parallel/layers.py): of the
    first weight of attention and of MLP, for the gradient of its input, that of the weight; with sequence parallelism
    for the gathering of its input the gradient of that.
    """
    run, over = stage.run, tensor_ring(device, stage)
    if over.ranks == 1:
        return 0.0
    tokens = run.train.micro_batch_size * run.train.seq_length
    message = tokens * run.model.hidden_size * BYTES[run.train.precision]
    one = over.round_seconds(message)
    # In rounds of a sub-layer's message; smaller ones of the loss and of norms are counted by their bytes.
    sent = communication(stage).tensor / stage.micro_batches
    rounds = sent / (message * (over.ranks - 1) / over.ranks)
    if not overlap:
        return rounds * one
    products = [
        2 * tokens * weight.size / rate for weight in layer_weights(run.model) if weight.name in (QKV, GATE_AND_UP)
    ]
    if run.parallel.sequence_parallel:
        saved = sum(2 * min(one, product) for product in products)
    else:
        saved = sum(min(2 * one, product) for product in products)
    return rounds * one - stage.layers * saved
