"""Process groups of a world that is not there: torch's fake backend, whose collectives return at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megatron_kaiyuan.config import ParallelConfig


@contextlib.contextmanager
def pretended_groups(rank: int, world_size: int, parallel: ParallelConfig) -> Iterator[None]:
    """torch.distributed and megatron-core's groups as one rank of a world sees them, in this process alone.

    What collectives leave in their tensors means nothing.
    """
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_stages,
            create_gloo_process_groups=False,
        )
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
