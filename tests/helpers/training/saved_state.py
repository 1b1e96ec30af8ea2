"""The state in a checkpoint, whole, and the comparison of two."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_kaiyuan import platform


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Every tensor of a checkpoint whole, and what is common to the ranks."""
    device = platform.activate("cpu")
    from megatron.core import dist_checkpointing

    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        tensors = dist_checkpointing.load_plain_tensors(str(folder))
        common = dist_checkpointing.load_common_state_dict(str(folder))
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}, common


def assert_same_state(one: Path, other: Path) -> None:
    tensors, common = load(one)
    others, other_common = load(other)
    assert tensors.keys() == others.keys()
    # Weights, FP32 main weights and both moments of each.
    assert sum(name.startswith("optimizer.state.exp_avg_sq.") for name in tensors) == len(tensors) // 4
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert common["progress"] == other_common["progress"]
    assert common["optimizer"] == other_common["optimizer"]
    for mine, theirs in zip(common["random"], other_common["random"], strict=True):
        assert torch.equal(mine["host"], theirs["host"])


def what_counts(optimizer: dict) -> tuple[list[float], str]:
    """Each group's number of steps, and the state of the loss scaler."""
    steps = [float(group["step"]) for group in optimizer["optimizer"]["param_groups"]]
    return steps, str(optimizer.get("grad_scaler"))
