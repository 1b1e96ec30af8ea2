"""The FP32 weights that the optimizer updates, with their gradients and what the last update changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_kaiyuan.optim.plain import PlainOptimizer, main_parameters
from megatron_kaiyuan.platform.megatron import owned_main_weights


@dataclass(frozen=True)
class MainWeights:
    """Of one parameter, or of the range of it that this rank updates; all tensors flat and FP32.

    Attributes:
        parameter: of the network.
        start: where in the flattened parameter the values begin.
        gradient: as the optimizer uses it: without the loss scale, clipped.
        options: the optimizer's group: `lr`, `weight_decay`, `betas`, `eps`, `step`.
    """

    parameter: torch.nn.Parameter
    start: int
    values: torch.Tensor
    gradient: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    options: dict[str, Any]

    def blocks(self, elements: int) -> Iterator[MainWeights]:
        """The same in parts of so many elements."""
        tensors = (self.values, self.gradient, self.exp_avg, self.exp_avg_sq)
        starts = range(self.start, self.start + len(self.values), elements)
        parts = zip(starts, *(tensor.split(elements) for tensor in tensors), strict=True)
        for start, values, gradient, first, second in parts:
            yield replace(self, start=start, values=values, gradient=gradient, exp_avg=first, exp_avg_sq=second)

    def last_update(self) -> torch.Tensor:
        """What the last step of AdamW added to the values, told from its result: nothing is kept for it.

        w' = (1 - lr * wd) * w - u, with u from the moments (Loshchilov and Hutter, arXiv 1711.05101), so that
        w' - w = -(u + lr * wd * w') / (1 - lr * wd).
        """
        beta1, beta2 = self.options["betas"]
        step, rate = float(self.options["step"]), self.options["lr"]
        decay = rate * self.options["weight_decay"]
        divisor = self.exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**step)).add_(self.options["eps"])
        moved = torch.div(self.exp_avg, divisor, out=divisor).mul_(rate / (1 - beta1**step))
        return moved.add_(self.values, alpha=decay).div_(decay - 1)


def main_weights(optimizer: ChainedOptimizer) -> Iterator[MainWeights]:
    """What this rank updates, between a step's gradients and the next step's."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        options = {id(main): group for group in part.optimizer.param_groups for main in group["params"]}
        for parameter, start, main in _pieces(part):
            assert main.grad is not None, "the optimizer has been given no gradients yet"
            state = part.optimizer.state[main]
            yield MainWeights(
                parameter,
                start,
                values=main.detach().view(-1),
                gradient=main.grad.view(-1),
                exp_avg=state["exp_avg"].view(-1),
                exp_avg_sq=state["exp_avg_sq"].view(-1),
                options=options[id(main)],
            )


def _pieces(part: DistributedOptimizer | PlainOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor]]:
    """Each parameter, where this rank's range of it starts, and the main weights of the range."""
    if not isinstance(part, DistributedOptimizer):
        yield from ((parameter, 0, main) for parameter, main in main_parameters(part))
        return
    yield from owned_main_weights(part)
