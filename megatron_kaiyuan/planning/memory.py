"""Peak memory of a rank by part, as the largest of the moments at which it can occur."""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.planning.activations import MicroBatch
from megatron_kaiyuan.planning.communicators import communicator_buffers
from megatron_kaiyuan.planning.parameters import BYTES, PipelineStage, distinct_stages, held
from megatron_kaiyuan.platform.blocks import block_elements, block_queries
from megatron_kaiyuan.platform.datasheets import Device

_FP32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at its peak.

    Attributes:
        weights: in the training precision.
        gradients: FP32.
        optimizer: FP32 main weights, which FP32 training does not need, both moments, and the average of the weights
            (`ema.decay`).
        activations: what the micro-batches in flight have saved for their backward passes, and what is recomputed.
        logits: of the last stage, with their gradient.
        buffers: what one operation needs while it runs; on a CPU the checkpoint's copy besides, and an average of
            `ema.device: cpu`, which elsewhere are in host memory; on an NPU the buffers of HCCL, outside of torch's
            allocator.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def largest_part(self) -> str:
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class StageMemory:
    """A stage with what its ranks need.

    Attributes:
        host: the copy that a save takes, and the average of the weights of `ema.device: cpu`, in host memory.
    """

    stage: PipelineStage
    device: Memory
    host: int


def fullest_stage(run: RunConfig, world_size: int, device: Device) -> StageMemory:
    """The stage whose ranks need most."""
    return max(
        (stage_memory(stage, device) for stage in distinct_stages(run, world_size)), key=lambda one: one.device.total
    )


def stage_memory(stage: PipelineStage, device: Device) -> StageMemory:
    """Peak of the ranks of one stage."""
    mine = held(stage)
    host = checkpoint_copy(stage) + mine.host
    activations, logits, buffers = max(_moments(MicroBatch(stage, device)), key=sum)
    copy = host if device.platform == "cpu" else 0
    buffers += copy + communicator_buffers(stage, device)
    memory = Memory(mine.weights, mine.gradients, mine.optimizer, activations, logits, buffers)
    return StageMemory(stage, memory, host)


def checkpoint_copy(stage: PipelineStage) -> int:
    """Bytes of host memory that hold a rank's part of a checkpoint; they are kept from save to save.

    Weights and optimizer state are written by the data-parallel ranks, a share each. Main weights are written in any
    precision.
    """
    element, with_ema = BYTES[stage.run.train.precision], stage.run.ema.decay is not None
    return held(stage).parameters * (element + (3 + with_ema) * _FP32) // stage.data_parallel_size


def _moments(batch: MicroBatch) -> list[tuple[int, int, int]]:
    """Activations, logits and buffers at each moment that can be the peak."""
    stage = batch.stage
    saved = batch.saved()
    in_flight = _in_flight(stage)
    always = _always(batch)
    kept = in_flight * saved // stage.chunks
    moments = [(kept + again, 0, always + work) for again, work in _layer_moments(batch)]
    if stage.is_last:
        # Their gradient is written over them.
        work = max(_loss_work(batch), _output_gradient(batch))
        moments.append((kept, batch.logits * batch.head_element, always + work))
    if stage.is_first:
        # The last thing of a backward pass: the other micro-batches in flight are still there.
        others = (in_flight - 1) * saved // stage.chunks
        moments.append((others, 0, always + batch.head_weight * batch.element + batch.stream))
    return moments


def _in_flight(stage: PipelineStage) -> int:
    """Chunks times micro-batches that a rank holds at most between their forward and backward passes.

    Those of the warm-up and one more (megatron-core 0.16, pipeline_parallel/schedules.py: get_pp_rank_microbatches).
    """
    stages = stage.run.parallel.pipeline_model_parallel_size
    ahead = stages - stage.index - 1
    if stage.chunks > 1:
        ahead = 2 * ahead + (stage.chunks - 1) * stages
    return min(ahead + 1, stage.micro_batches * stage.chunks)


def _loss_work(batch: MicroBatch) -> int:
    """What the gradient of a block of logits is made from: their capped copy, the gradient before the cap and after it.

    FP32 logits are capped in their place.
    """
    copied, capped = batch.head_element < _FP32, batch.stage.run.model.logits_soft_cap is not None
    return (1 + copied + capped) * min(batch.logits, block_elements(batch.device.platform)) * _FP32


def _output_gradient(batch: MicroBatch) -> int:
    """Gradient of the output layer before it is added to the FP32 buffer; of an FP32 head it is rounded from FP32."""
    rounded = batch.element if batch.head_element > batch.element else 0
    return batch.head_weight * (batch.head_element + rounded)


def _layer_moments(batch: MicroBatch) -> list[tuple[int, int]]:
    """What is restored for the backward pass of a sub-layer, and what it holds at once besides what was saved.

    In the MLP the gradients of both halves of the first projection with what they are made from, or with that of its
    weight. Attention with a fused kernel holds less.
    """
    run = batch.stage.run
    inner = run.model.ffn_hidden_size // batch.tensor_ranks
    halves, weight = 2 * batch.tokens * inner * batch.element, 2 * inner * run.model.hidden_size * batch.element
    mlp = halves + max(halves, weight) + 2 * batch.stream
    of_attention, of_mlp = batch.computed_again()
    if batch.device.fused_attention:
        return [(max(of_attention, of_mlp), mlp)]
    return [(of_mlp, mlp), (of_attention - batch.released(), _blocked_work(batch))]


def _blocked_work(batch: MicroBatch) -> int:
    """What the backward pass of `backend/blocked.py` holds at once.

    The softmax of a block, its gradient and the scores', in FP32; a sample's gradients of keys and values in FP32; the
    gradients of the result, of queries, keys and values.
    """
    run = batch.stage.run
    length, size = run.train.seq_length, run.model.kv_channels
    heads = run.model.num_attention_heads // batch.tensor_ranks
    groups = run.model.num_query_groups // batch.tensor_ranks
    scores = heads * min(block_queries(heads, length), length) * length
    sums = 2 * groups * length * size
    return 3 * scores * _FP32 + sums * _FP32 + 2 * batch.tokens * (heads + groups) * size * batch.element


def _always(batch: MicroBatch) -> int:
    """megatron-core's buffer for the whole sequence, which sequence parallelism gathers for each matrix.

    And the causal mask of `backend/blocked.py`, which all layers share; documents have their own.
    """
    run = batch.stage.run
    causal = not (batch.device.fused_attention or run.data.reset_attention_mask)
    mask = run.train.seq_length**2 if causal else 0
    if not run.parallel.sequence_parallel:
        return mask
    return mask + batch.tokens * run.model.hidden_size * batch.element
