"""What the optimizer has beside tensors: its groups, with their numbers of steps, and the loss scaler.

Written in the form of megatron-core's optimizers, the groups of all parts in one list. Of a group only the number of
steps is taken back: the rest is the recipe's.
"""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.optim.scaler import loss_scaler


def common_state(optimizer: ChainedOptimizer) -> dict[str, Any]:
    """Return what is the same on every rank."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    scaler = loss_scaler(optimizer)
    return {"optimizer": {"param_groups": groups}, **({"grad_scaler": scaler.state_dict()} if scaler else {})}


def load_common_state(optimizer: ChainedOptimizer, saved: dict[str, Any]) -> None:
    """Take over what `common_state` gave, with these groups or others."""
    for group in optimizer.param_groups:
        group["step"] = _steps(saved["optimizer"]["param_groups"], group)
    scaler = loss_scaler(optimizer)
    if scaler is not None:
        scaler.load_state_dict(saved["grad_scaler"])


def _steps(saved: list[dict[str, Any]], group: dict[str, Any]) -> int:
    """Steps of the saved group that had this one's first kind of weight; old ones name no kinds, and agree."""
    kind = group["kinds"][0]
    of_kind = [other for other in saved if kind in other.get("kinds", (kind,))]
    # Before its first step a library's optimizer has no count.
    return int(of_kind[0].get("step", 0)) if of_kind else 0
