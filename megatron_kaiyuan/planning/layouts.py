"""Which layouts a recipe may have on so many devices: the recipe's own checks decide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.world import takes_turns
from megatron_kaiyuan.errors import UserError


def legal_layouts(run: RunConfig, world_size: int) -> list[RunConfig]:
    """The recipe in every layout that it allows on so many ranks.

    Tensor and pipeline parallel size, sequence parallelism where the former is above 1, the recipe's own virtual
    pipeline size or none, and the micro-batch size: powers of two, and the recipe's own.

    Raises:
        UserError: there is none; the message names what would work.
    """
    shapes = list(_model_parallel_shapes(run))
    layouts = [
        layout
        for shape in shapes
        if world_size % shape.parallel.model_parallel_size == 0
        for layout in _micro_batches(shape, world_size // shape.parallel.model_parallel_size)
    ]
    if not layouts:
        raise UserError(_why_none(run, world_size, sorted({shape.parallel.model_parallel_size for shape in shapes})))
    return layouts


def _model_parallel_shapes(run: RunConfig) -> Iterator[RunConfig]:
    # One after the other: sizes that are refused alone need not be tried with every other.
    for tensor in range(1, run.model.num_attention_heads + 1):
        for sequence_parallel in (False, True) if tensor > 1 else (False,):
            cut = _changed(
                run,
                parallel={
                    "tensor_model_parallel_size": tensor,
                    "pipeline_model_parallel_size": 1,
                    "virtual_pipeline_model_parallel_size": 1,
                    "sequence_parallel": sequence_parallel,
                },
            )
            if cut is None:
                continue
            virtual_sizes = sorted({1, run.parallel.virtual_pipeline_model_parallel_size})
            for pipeline, virtual in itertools.product(range(1, run.model.num_layers + 1), virtual_sizes):
                sizes = {"pipeline_model_parallel_size": pipeline, "virtual_pipeline_model_parallel_size": virtual}
                shape = _changed(cut, parallel=sizes)
                if shape is not None:
                    yield shape


def _micro_batches(shape: RunConfig, data_parallel_size: int) -> Iterator[RunConfig]:
    samples, rest = divmod(shape.train.global_batch_size, data_parallel_size)
    if rest:
        return
    sizes = itertools.takewhile(lambda size: size <= samples, (1 << power for power in itertools.count()))
    for size in sorted({*sizes, shape.train.micro_batch_size}):
        if samples % size == 0 and takes_turns(shape, samples // size):
            layout = _changed(shape, train={"micro_batch_size": size})
            if layout is not None:
                yield layout


def _changed(run: RunConfig, **sections: dict[str, Any]) -> RunConfig | None:
    """The run with some fields changed; None where its own checks refuse that."""
    content = {name: getattr(run, name) for name in type(run).model_fields}
    for name, values in sections.items():
        content[name] = {**getattr(run, name).model_dump(), **values}
    try:
        return RunConfig.model_validate(content)
    except ValidationError:
        return None


def _why_none(run: RunConfig, world_size: int, model_parallel_sizes: Sequence[int]) -> str:
    """One line: the layout that comes nearest, why it is refused, and the nearest numbers that work."""
    batch = run.train.global_batch_size

    # Each data-parallel size divides the batch.
    divisors = {part for low in range(1, math.isqrt(batch) + 1) if batch % low == 0 for part in (low, batch // low)}
    works = {size * part for size in model_parallel_sizes for part in divisors}
    sizes = [size for size in model_parallel_sizes if world_size % size == 0]
    ranks = min(world_size // size for size in sizes)
    fewer = max((count for count in works if count < world_size), default=None)
    more = min((count for count in works if world_size < count <= 2 * world_size), default=None)
    counts = " or ".join(str(count) for count in (fewer, more) if count is not None)
    batches = sorted({max(batch // ranks, 1) * ranks, -(-batch // ranks) * ranks})
    return (
        f"--gpus {world_size}: no legal layout; even cut over {world_size // ranks} model-parallel ranks there are "
        f"{ranks} data-parallel ones, and train.global_batch_size {batch} is not a multiple of them; use {counts} "
        f"GPUs, or train.global_batch_size={' or '.join(map(str, batches))}"
    )
