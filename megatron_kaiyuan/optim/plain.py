"""megatron-core's optimizers that are not cut over data-parallel ranks, seen as `sharded.py` sees the distributed one.

Every data-parallel rank holds the whole state of its parameters. Written under the same names as the distributed
optimizer's, so that a run may change from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from megatron.core.optimizer.optimizer import FP32Optimizer

# FP32Optimizer or Float16OptimizerWithFloat16Params.
PlainOptimizer: TypeAlias = Any
# megatron-core tells its groups apart by these.
_GROUP_KEYS = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")


def whole_ranges(part: PlainOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    """Every parameter with the range of it whose state this rank keeps: all."""
    for parameter, _ in main_parameters(part):
        yield parameter, 0, parameter.numel()


def whole_state(part: PlainOptimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Main weights and moments of a parameter, flat views of them."""
    main = next(main for one, main in main_parameters(part) if one is parameter)
    state = part.optimizer.state[main]
    return {"param": main.detach().view(-1), **{name: state[name].view(-1) for name in ("exp_avg", "exp_avg_sq")}}


def common_state(part: PlainOptimizer) -> dict[str, Any]:
    """What is the same on every rank, in the distributed optimizer's form."""
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in part.optimizer.param_groups
    ]
    scaler = getattr(part, "grad_scaler", None)
    return {"optimizer": {"param_groups": groups}, **({"grad_scaler": scaler.state_dict()} if scaler else {})}


def load_common_state(part: PlainOptimizer, common: dict[str, Any]) -> None:
    """Take over what `common_state` or the distributed optimizer gave."""
    saved = {tuple(group[key] for key in _GROUP_KEYS): group for group in common["optimizer"]["param_groups"]}
    for group in part.optimizer.param_groups:
        values = saved[tuple(group[key] for key in _GROUP_KEYS)]
        group.update({name: value for name, value in values.items() if name != "params"}, step=int(values["step"]))
    if scaler := getattr(part, "grad_scaler", None):
        scaler.load_state_dict(common["grad_scaler"])


def recipe_options(group: dict[str, Any]) -> dict[str, Any]:
    """What a group has from the recipe (betas, eps, ...); the rest, its parameters and steps, is state."""
    return {name: value for name, value in group.items() if name not in ("params", "step")}


def main_parameters(part: PlainOptimizer) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Each parameter of the network with the FP32 weights that the optimizer updates: itself, in FP32."""
    if isinstance(part, FP32Optimizer):
        for group in part.optimizer.param_groups:
            yield from ((parameter, parameter) for parameter in group["params"])
        return
    for halves, mains in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
        yield from zip(halves, mains, strict=True)
    for group in part.fp32_from_fp32_groups:
        yield from ((parameter, parameter) for parameter in group)
