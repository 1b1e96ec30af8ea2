"""Communicators of a rank, and the device memory that HCCL keeps for each.

Counted is what a training run with checkpoints calls; `tests/planning/test_communicators.py` watches it on real ranks.
Buffers are made when a group's first collective runs and are kept (HCCL's source: CreateCommCCLbuffer is called where
there is none yet): groups that megatron-core makes and this project never uses cost nothing, nor do groups of one rank.
"""

from __future__ import annotations

from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import Device

# Source: CANN, description of HCCL_BUFFSIZE: 200 MB by default, and each communicator has two of them.
_BUFFERS = 2 * 200 * 2**20
# Source: torch_npu 2.13, P2P_HCCL_BUFFSIZE: 20 MB by default for the communicator of two ranks that a send or receive
# of its own makes; those that are batched use their group's.
_PAIR_BUFFERS = 2 * 20 * 2**20


def communicator_buffers(stage: PipelineStage, device: Device) -> int:
    """Bytes of HCCL's buffers on each rank of a stage; 0 for other libraries, whose buffers are small."""
    if device.platform != "npu":
        return 0
    return len(communicators(stage)) * _BUFFERS + neighbours(stage) * _PAIR_BUFFERS


def communicators(stage: PipelineStage) -> list[str]:
    """The groups of more than one rank that a rank's collectives run in, by megatron-core's descriptions of them."""
    run, parallel = stage.run, stage.run.parallel
    sizes = {
        "default_pg": stage.world_size,
        # Gradients and weights; the clipping norm over all ranks of a distributed optimizer, or a model's.
        "DATA_PARALLEL_GROUP_WITH_CP": stage.data_parallel_size,
        "TENSOR_MODEL_PARALLEL_GROUP": parallel.tensor_model_parallel_size,
    }
    if parallel.use_distributed_optimizer:
        sizes["INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP"] = stage.world_size
    else:
        sizes["MODEL_PARALLEL_GROUP"] = parallel.model_parallel_size
    if run.optimizer.qk_clip_tau is not None or run.data.eod_mask_loss:
        sizes["DATA_PARALLEL_GROUP"] = stage.data_parallel_size
    if not stage.run.parallel.virtual_stages:
        sizes["PIPELINE_MODEL_PARALLEL_GROUP"] = parallel.pipeline_model_parallel_size
    return [name for name, ranks in sizes.items() if ranks > 1]


def neighbours(stage: PipelineStage) -> int:
    """Pairs of ranks that send by themselves: with virtual stages those before and after, in a ring."""
    return 2 if stage.run.parallel.virtual_stages else 0
