"""`kaiyuan train --dry-run`: the network and the optimizer of a world of any size, in one process, without memory.

The ranks' own code builds them (`train/start.py`), on torch's fake process group and the meta device, whose tensors
have shapes and types but no storage. What it counts is what `kaiyuan plan` computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import RunConfig, check_world_size, load_run
from megatron_kaiyuan.planning.memory import stage_memory
from megatron_kaiyuan.planning.parameters import Held, PipelineStage, distinct_stages
from megatron_kaiyuan.planning.show import aligned, gib
from megatron_kaiyuan.platform.datasheets import DEVICES

if TYPE_CHECKING:
    import torch

    from megatron_kaiyuan.train.state import TrainState

# The device whose kernels the estimates are for, by the recipe's platform.
_KERNELS = {"auto": "h100", "cuda": "h100", "npu": "910a", "cpu": "cpu"}


def dry_run(recipe: Path, overrides: Sequence[str], world_size: int) -> str:
    """Build what the ranks of each kind of pipeline stage would hold, and count it; data is not opened.

    Returns:
        A table and a one-line summary.

    Raises:
        UserError: recipe and world do not fit.
    """
    run = load_run(recipe, overrides)
    check_world_size(run, world_size)
    counts = [(stage, count(stage)) for stage in distinct_stages(run, world_size)]
    return "\n".join([*_table(run, counts), _summary(run, world_size)])


def count(stage: PipelineStage) -> Held:
    """Bytes of the tensors that the first rank of a stage builds; the world needs not be there."""
    # The platform that can do without devices and memory; sizes are the same on every one.
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.pretended import pretended_groups
    from megatron_kaiyuan.platform.cpu import CpuPlatform
    from megatron_kaiyuan.train.start import build_state

    assert isinstance(device, CpuPlatform)
    with pretended_groups(stage.first_rank, stage.world_size, stage.run.parallel), device.without_memory():
        return _count(build_state(stage.run, device), stage.run.ema.device == "cpu")


def _count(state: TrainState, ema_on_host: bool) -> Held:
    parameters = list(state.network.parameters())
    weights = _storages(parameters)
    gradients = _storages(parameter.main_grad for parameter in parameters)  # type: ignore[attr-defined]
    optimizer: dict[int, int] = {}
    for part in state.optimizer.chained_optimizers:
        # FP32 main weights may be views of the weights.
        mains = [main for group in part.optimizer.param_groups for main in group["params"]]
        moments = [moment for one in part.optimizer.state.values() for moment in one.values()]
        optimizer |= _storages([*mains, *moments])
    average = _storages(state.ema.values.values() if state.ema else ())
    optimizer |= {} if ema_on_host else average
    return Held(
        parameters=sum(parameter.numel() for parameter in parameters),
        weights=sum(weights.values()),
        gradients=sum(gradients.values()),
        optimizer=sum(size for place, size in optimizer.items() if place not in weights),
        host=sum(average.values()) if ema_on_host else 0,
    )


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each storage that the tensors are in."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}


def _table(run: RunConfig, counts: Sequence[tuple[PipelineStage, Held]]) -> list[str]:
    head = ["stage", "", "rank", "parameters", "weights", "grads", "optim", "activ", "logits", "buffers"]
    rows = [head]
    for stage, held in counts:
        guessed = stage_memory(stage, DEVICES[_KERNELS[run.platform]]).device
        sizes = [held.weights, held.gradients, held.optimizer, guessed.activations, guessed.logits, guessed.buffers]
        name = [str(stage.index), stage.role, str(stage.first_rank), f"{held.parameters:,}"]
        rows.append([*name, *map(gib, sizes)])
    return [
        *aligned(rows),
        "GiB a rank: weights, grads and optim counted on megatron-core's own tensors; the rest computed as by kaiyuan "
        f"plan, for the kernels of platform {run.platform}",
    ]


def _summary(run: RunConfig, world_size: int) -> str:
    parallel = run.parallel
    return (
        f"dry run: {world_size} processes, tensor {parallel.tensor_model_parallel_size} x pipeline "
        f"{parallel.pipeline_model_parallel_size} x data {world_size // parallel.model_parallel_size}, "
        f"{PipelineStage(run, world_size, 0).micro_batches} micro-batches of {run.train.micro_batch_size} a step"
    )
