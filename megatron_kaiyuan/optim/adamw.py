"""AdamW that megatron-core can save and load without its torch path's traps.

torch's AdamW keeps `step` as one tensor for each parameter. megatron-core's distributed optimizer saves one
number for all, and after loading lets all parameters share a single `step` tensor, which then rises once
for each parameter: the trajectory drifts silently (megatron-core 0.16.1; docs/decisions.md). Here `step` is
a number of the param group, as in the fused Adam of Apex and Transformer Engine; it appears as a state
tensor only inside `state_dict()`, where megatron-core looks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adamw import adamw


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
        """An AdamW with the param groups of an optimizer that has not stepped yet.

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
            # torch adds one to each parameter's step tensor; these are made anew and thrown away. Only the fused kernel
            # wants them on the device: the other form would wait for the device to read each.
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
