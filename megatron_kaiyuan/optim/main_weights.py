"""The FP32 weights that a rank updates, with their gradients and what their optimizer keeps, over all its parts.

megatron-core's distributed optimizer has ranges of flattened parameters, its other ones whole parameters, of which
every data-parallel rank holds the state. Here they look alike, so that a run may change from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer

from megatron_kaiyuan.optim.algorithms import ALGORITHMS, State
from megatron_kaiyuan.optimizers import STATES
from megatron_kaiyuan.platform.megatron import owned_main_weights

# FP32Optimizer or Float16OptimizerWithFloat16Params.
PlainOptimizer: TypeAlias = Any


@dataclass(frozen=True)
class MainWeights:
    """Of one parameter, or of the range of it that this rank updates; all tensors are flat FP32 views.

    Attributes:
        parameter: of the network.
        start: where in the flattened parameter the values begin.
        gradient: as the optimizer uses it: without the loss scale, clipped; None outside of a step.
        state: by the names of `optimizers.STATES`; zeros that are no view where the optimizer has not stepped yet.
        options: the optimizer's group: `lr`, `weight_decay`, `betas`, `eps`, `step`, ...
    """

    parameter: torch.nn.Parameter
    start: int
    values: torch.Tensor
    gradient: torch.Tensor | None
    state: State
    options: dict[str, Any]

    def blocks(self, elements: int) -> Iterator[MainWeights]:
        """The same in blocks of so many elements."""
        for first in range(0, len(self.values), elements):
            block = slice(first, first + elements)
            yield replace(
                self,
                start=self.start + first,
                values=self.values[block],
                gradient=None if self.gradient is None else self.gradient[block],
                state={name: tensor[block] for name, tensor in self.state.items()},
            )

    def last_update(self) -> torch.Tensor:
        """Return what the last step added to the values."""
        return ALGORITHMS[self.options["optimizer"]].last_update(self.values, self.state, self.options)


def main_weights(optimizer: ChainedOptimizer) -> Iterator[MainWeights]:
    """Yield what this rank updates."""
    for part in optimizer.chained_optimizers:
        groups = {id(main): group for group in part.optimizer.param_groups for main in group["params"]}
        for parameter, start, main in _pieces(part):
            options, state = groups[id(main)], part.optimizer.state[main]
            yield MainWeights(
                parameter,
                start,
                values=main.detach().view(-1),
                gradient=None if main.grad is None else main.grad.view(-1),
                state={
                    name: (state[name].detach() if name in state else torch.zeros_like(main)).view(-1)
                    for name in STATES[options["optimizer"]]
                },
                options=options,
            )


def allocate_state(optimizer: ChainedOptimizer) -> None:
    """Create the optimizer state of parameters before the first step."""
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for main in group["params"]:
                state = part.optimizer.state[main]
                missing = [name for name in STATES[group["optimizer"]] if name not in state]
                state.update({name: torch.zeros_like(main) for name in missing})


def _pieces(part: DistributedOptimizer | PlainOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor]]:
    """Each parameter, where this rank's range of it starts, and the main weights of the range."""
    if isinstance(part, DistributedOptimizer):
        yield from owned_main_weights(part)
    else:
        yield from ((parameter, 0, main) for parameter, main in _main_parameters(part))


def _main_parameters(part: PlainOptimizer) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Each parameter of the network with the FP32 weights that the optimizer updates: itself, in FP32."""
    if isinstance(part, FP32Optimizer):
        for group in part.optimizer.param_groups:
            yield from ((parameter, parameter) for parameter in group["params"])
        return
    for halves, mains in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
        yield from zip(halves, mains, strict=True)
    for group in part.fp32_from_fp32_groups:
        yield from ((parameter, parameter) for parameter in group)
