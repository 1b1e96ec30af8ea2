"""Does a recipe fit a number of processes?"""

from __future__ import annotations

from megatron_kaiyuan.config.schema import RunConfig
from megatron_kaiyuan.errors import UserError


def check_world_size(run: RunConfig, world_size: int) -> None:
    """Refuse a world that the parallel sizes or the batch cannot be spread over.

    Raises:
        UserError: with the numbers.
    """
    parallel, train = run.parallel, run.train
    model_parallel = parallel.model_parallel_size
    if world_size % model_parallel:
        raise UserError(
            f"{world_size} processes cannot be cut into groups of {model_parallel} "
            f"(parallel.tensor_model_parallel_size {parallel.tensor_model_parallel_size} x "
            f"pipeline_model_parallel_size {parallel.pipeline_model_parallel_size}); "
            f"start a multiple of {model_parallel}",
            every_rank=True,
        )
    data_parallel = world_size // model_parallel
    if train.global_batch_size % (train.micro_batch_size * data_parallel):
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} is not a multiple of micro_batch_size "
            f"{train.micro_batch_size} x {data_parallel} data-parallel ranks ({world_size} processes); "
            "change one of them",
            every_rank=True,
        )
    micro_batches = train.global_batch_size // (train.micro_batch_size * data_parallel)
    if not takes_turns(run, micro_batches):
        raise UserError(
            f"parallel.virtual_pipeline_model_parallel_size {parallel.virtual_pipeline_model_parallel_size}: "
            f"{micro_batches} micro-batches a step and data-parallel rank are not a multiple of "
            f"pipeline_model_parallel_size {parallel.pipeline_model_parallel_size}, in groups of which the parts of "
            "the network take turns; change train.micro_batch_size or train.global_batch_size",
            every_rank=True,
        )


def takes_turns(run: RunConfig, micro_batches: int) -> bool:
    """Whether megatron-core's interleaved schedule takes so many micro-batches; any other takes all numbers."""
    parallel = run.parallel
    interleaved = parallel.virtual_pipeline_model_parallel_size > 1
    return not interleaved or micro_batches % parallel.pipeline_model_parallel_size == 0
