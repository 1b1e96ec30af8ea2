"""Reading checkpoints: whole training states on every rank, or plain weights in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.cluster.groups import agreed
from megatron_kaiyuan.errors import UserError

OPTIMIZER_PREFIX = "optimizer."


def choose_step(run_dir: Path) -> tuple[int | None, list[str]]:
    """The step to resume from, chosen once and known to every rank, and the damage found on the way.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """

    def choose_once() -> tuple[int | None, list[str]] | None:
        return layout.newest_valid(run_dir) if torch.distributed.get_rank() == 0 else None

    choice = [agreed(choose_once)]
    torch.distributed.broadcast_object_list(choice, src=0)
    return choice[0]  # type: ignore[return-value]


def load_common(folder: Path) -> dict[str, Any]:
    """What is the same on every rank: counters, configuration, versions. The caller has verified `folder`."""
    return dist_checkpointing.load_common_state_dict(str(folder))


def load_sharded(folder: Path, sharded_state: dict[str, Any]) -> dict[str, Any]:
    """Load into the layout that `sharded_state` describes, whatever layout wrote the checkpoint. Collective."""
    return dist_checkpointing.load(sharded_state, str(folder))


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights as whole tensors under megatron-core's names, layers stacked in the first dimension.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: checkpoint not found")
    layout.verify(folder)
    everything = dist_checkpointing.load_tensors_metadata(str(folder))
    wanted = {key: value for key, value in everything.items() if not key.startswith(OPTIMIZER_PREFIX)}
    loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
    tensors, _ = extract_matching_values(loaded, lambda value: isinstance(value, torch.Tensor))
    return {key: tensor for key, tensor in tensors.items() if key in wanted}


def whole(weights: dict[str, torch.Tensor]) -> dict[str, ShardedTensor]:
    """Whole tensors as one process's shards, in the form that `load_weights` reads back."""
    return {key: ShardedTensor.from_rank_offsets(key, tensor) for key, tensor in weights.items()}
