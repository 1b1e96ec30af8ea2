"""AdamW whose `step` is a number of the parameter group, as in the fused Adam of Apex and Transformer Engine.

torch's keeps it as one tensor for each parameter, which megatron-core lets all parameters share after loading: it then
rises once for each parameter, and the trajectory drifts silently (megatron-core 0.16.1; docs/decisions.md). It appears
as a state tensor only inside `state_dict()`.
"""

from __future__ import annotations

import math
from typing import Any

import megatron.core.optimizer as megatron_optimizer
import torch
from torch.optim.adamw import adamw

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import RunConfig


class AdamW(torch.optim.AdamW):
    """Decoupled weight decay Adam (Loshchilov and Hutter, arXiv 1711.05101).

    State of a parameter: `exp_avg` and `exp_avg_sq`, FP32, of its shape. State of a group: `step`.

    Args:
        fused: one kernel a group; without it a dozen a parameter, which any device has.
    """

    def __init__(self, params: Any, fused: bool = True, **options: Any):
        super().__init__(params, fused=fused, foreach=False, **options)
        self.fused = fused
        self._init_state()

    @classmethod
    def in_place_of(cls, other: torch.optim.Optimizer, fused: bool = True) -> AdamW:
        """Return an AdamW with the parameter groups of a new optimizer.

        The distributed optimizer's parameters are views into its buffers, which an optimizer's constructor
        refuses; so, as megatron-core does itself, the groups are set afterwards.
        """
        optimizer = cls([torch.nn.Parameter(torch.empty(0, device="cpu"))], fused=fused)
        optimizer.state.clear()
        optimizer.param_groups = other.param_groups
        optimizer._init_state()
        return optimizer

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] += 1
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            beta1, beta2 = group["betas"]
            # torch adds one to each parameter's step tensor; these are made again for each step and thrown away. Only
            # the fused kernel wants them on the device: the other form would wait for the device to read each.
            place = params[0].device if self.fused else "cpu"
            steps = list(torch.full((len(params),), float(group["step"] - 1), device=place).unbind())
            adamw(
                params,
                [param.grad for param in params],
                [self.state[param]["exp_avg"] for param in params],
                [self.state[param]["exp_avg_sq"] for param in params],
                [],
                steps,
                fused=self.fused,
                foreach=False,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """torch's form, with each parameter's `step` as a tensor."""
        content = super().state_dict()
        steps = {index: group["step"] for group in content["param_groups"] for index in group["params"]}
        content["state"] = {
            index: {**state, "step": torch.tensor(float(steps[index]))} for index, state in content["state"].items()
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave; `step` goes back to the groups."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.pop("step", None)
        for group in self.param_groups:
            group["step"] = int(group["step"])

    def _init_state(self) -> None:
        for group in self.param_groups:
            group["step"] = 0
            for param in group["params"]:
                self.state[param] = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}


def build(theirs: torch.optim.Optimizer, run: RunConfig) -> torch.optim.Optimizer:
    """Return the fused Adam of Transformer Engine or Apex where megatron-core found one, else ours."""
    if not megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        return theirs
    return AdamW.in_place_of(theirs, platform.current().has_fused_adamw)


def last_update(values: torch.Tensor, state: dict[str, torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """Return what the last step added to the values, computed from its result: nothing is kept for it.

    w' = (1 - lr * wd) * w - u, with u from the moments (Loshchilov and Hutter, arXiv 1711.05101), so that
    w' - w = -(u + lr * wd * w') / (1 - lr * wd).
    """
    beta1, beta2 = options["betas"]
    step, rate = float(options["step"]), options["lr"]
    decay = rate * options["weight_decay"]
    divisor = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2**step)).add_(options["eps"])
    moved = torch.div(state["exp_avg"], divisor, out=divisor).mul_(rate / (1 - beta1**step))
    return moved.add_(values, alpha=decay).div_(decay - 1)
