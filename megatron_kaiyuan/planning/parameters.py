"""Parameters of a rank and the bytes that megatron-core keeps for them: weights, gradients, optimizer.

Exact: `kaiyuan train --dry-run` counts the same on the real tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_kaiyuan.config import RunConfig, WeightKind
from megatron_kaiyuan.network import Weight, embedding_weights, head_weights, layer_weights
from megatron_kaiyuan.optimizers import STATES, rules

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Gradients are summed in FP32 whatever the precision, and so are main weights and what optimizers keep.
_FP32 = 4
# megatron-core 0.16, distributed/param_and_grad_buffer.py: where a parameter starts in the flat buffer, and what the
# end of a bucket is a multiple of besides the number of data-parallel ranks.
_PARAMETER_ALIGNMENT, _BUCKET_ALIGNMENT = 64, 128
_BUCKET_PARAMETERS, _BUCKET_PARAMETERS_A_RANK = 40_000_000, 1_000_000


@dataclass(frozen=True)
class PipelineStage:
    """A pipeline stage of a run on so many ranks.

    Attributes:
        index: from 0; the first one has the embedding, the last one the head.
    """

    run: RunConfig
    world_size: int
    index: int

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.run.parallel.pipeline_model_parallel_size - 1

    @property
    def role(self) -> str:
        if self.is_first and self.is_last:
            return "whole"
        return "first" if self.is_first else "last" if self.is_last else "middle"

    @property
    def layers(self) -> int:
        return self.run.model.num_layers // self.run.parallel.pipeline_model_parallel_size

    @property
    def chunks(self) -> int:
        """Parts of the network on a rank, see `virtual_pipeline_model_parallel_size`."""
        return self.run.parallel.virtual_pipeline_model_parallel_size

    @property
    def data_parallel_size(self) -> int:
        return self.world_size // self.run.parallel.model_parallel_size

    @property
    def micro_batches(self) -> int:
        """Of one step, on each rank."""
        return self.run.train.global_batch_size // (self.run.train.micro_batch_size * self.data_parallel_size)

    @property
    def first_rank(self) -> int:
        """Data-parallel and tensor-parallel rank 0 of this stage; megatron-core's pipeline ranks are outermost."""
        return self.index * self.world_size // self.run.parallel.pipeline_model_parallel_size


def distinct_stages(run: RunConfig, world_size: int) -> list[PipelineStage]:
    """First, second and last stage: those between hold what the second holds, or less of it in flight."""
    last = run.parallel.pipeline_model_parallel_size - 1
    return [PipelineStage(run, world_size, index) for index in sorted({0, min(1, last), last})]


@dataclass(frozen=True)
class Held:
    """What a rank keeps for its parameters, in bytes. Optimizer: that of data-parallel rank 0, which has most.

    `host`: the average of the weights, where `ema.device` puts it into host memory.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    host: int


def held(stage: PipelineStage) -> Held:
    """Bytes for the parameters of a stage's first rank."""
    run = stage.run
    total = sum(map(sum, chunk_sizes(stage)))
    element = BYTES[run.train.precision]
    state = _state_bytes(run)
    optimizer = sum(size * state[kind] for kind, size in _updated(stage))
    on_host = run.ema.decay is not None and run.ema.device == "cpu"
    host = sum(size for _, size in _updated(stage)) * _FP32 if on_host else 0
    if not run.parallel.use_distributed_optimizer:
        return Held(total, total * element, total * _FP32, optimizer, host)
    padded = sum(buckets[-1].stop for buckets in chunk_buckets(stage))
    return Held(total, padded * element, padded * _FP32, optimizer, host)


def _updated(stage: PipelineStage) -> Iterator[tuple[WeightKind, int]]:
    """Yield the elements that the stage's first rank updates, with their kind."""
    if not stage.run.parallel.use_distributed_optimizer:
        ranks = stage.run.parallel.tensor_model_parallel_size
        yield from ((weight.kind, weight.elements(ranks)) for chunk in chunk_weights(stage) for weight in chunk)
        return
    for buckets, weights in zip(chunk_buckets(stage), chunk_weights(stage), strict=True):
        elements = [size for bucket in buckets for size in bucket.own_elements(stage.data_parallel_size)]
        yield from zip((weight.kind for weight in reversed(weights)), elements, strict=True)


def _state_bytes(run: RunConfig) -> dict[WeightKind, int]:
    """Bytes of the optimizer for each element of a weight, by its kind."""
    # With FP32 the weights themselves are the main weights.
    main = 0 if run.train.precision == "fp32" else 1
    ema = int(run.ema.decay is not None and run.ema.device == "auto")
    return {kind: _FP32 * (main + ema + len(STATES[rule.optimizer])) for kind, rule in rules(run).items()}


def chunk_sizes(stage: PipelineStage) -> Iterator[list[int]]:
    """Of each of the stage's chunks the elements of its parameters on a tensor-parallel rank."""
    ranks = stage.run.parallel.tensor_model_parallel_size
    for weights in chunk_weights(stage):
        yield [weight.elements(ranks) for weight in weights]


def chunk_weights(stage: PipelineStage) -> Iterator[list[Weight]]:
    """Of each of the stage's chunks its parameters, in the order of `GPTModel.named_parameters()`."""
    model = stage.run.model
    embedding, layer, head = ([*weights(model)] for weights in (embedding_weights, layer_weights, head_weights))
    for number in range(stage.chunks):
        yield [
            *(embedding if stage.is_first and number == 0 else []),
            *layer * (stage.layers // stage.chunks),
            *(head if stage.is_last and number == stage.chunks - 1 else []),
        ]


@dataclass(frozen=True)
class Bucket:
    """A range of the flat buffer, and the ranges of it that are parameters; the rest is padding."""

    start: int
    stop: int
    parameters: list[tuple[int, int]]

    @property
    def elements(self) -> int:
        return self.stop - self.start

    def own_elements(self, ranks: int) -> Iterator[int]:
        """Of each parameter, those in the part of the first of so many data-parallel ranks."""
        own = self.start + (self.stop - self.start) // ranks
        return (max(min(stop, own) - start, 0) for start, stop in self.parameters)


def chunk_buckets(stage: PipelineStage) -> list[list[Bucket]]:
    """Of each of the stage's chunks, which have a buffer each, the buckets: the chunk's last parameters first."""
    return [_buckets(sizes, stage, is_first=number == 0) for number, sizes in enumerate(chunk_sizes(stage))]


def _buckets(sizes: list[int], stage: PipelineStage, is_first: bool) -> list[Bucket]:
    """megatron-core's layout of a chunk's flat buffer: parameters from the last to the first.

    Args:
        is_first: the first chunk of its rank.
    """
    ranks = stage.data_parallel_size
    largest = None
    if stage.run.parallel.overlap_grad_reduce and stage.is_first and is_first:
        largest = max(_BUCKET_PARAMETERS, _BUCKET_PARAMETERS_A_RANK * ranks)
    alignment = math.lcm(ranks, _BUCKET_ALIGNMENT)
    buckets: list[Bucket] = []
    start, place, parameters = 0, 0, []
    for index, size in enumerate(reversed(sizes), start=1):
        place = _up_to(place, _PARAMETER_ALIGNMENT)
        parameters.append((place, place + size))
        place += size
        if index == len(sizes) or (largest is not None and place - start >= largest):
            buckets.append(Bucket(start, _up_to(place, alignment), parameters))
            start = place = buckets[-1].stop
            parameters = []
    return buckets


def _up_to(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
