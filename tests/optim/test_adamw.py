from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from megatron_kaiyuan.optim.adamw import AdamW


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((7, 5), (3,), (0,))]


def step(params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_same_as_torch_bit_for_bit(weight_decay: float, fused: bool) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": weight_decay}
    mine, theirs = parameters(0), parameters(0)
    ours, reference = AdamW(mine, fused, **options), torch.optim.AdamW(theirs, fused=fused, foreach=False, **options)
    for seed in range(10):
        step(mine, ours, seed)
        step(theirs, reference, seed)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)


def test_state_survives_a_round_trip_bit_for_bit() -> None:
    mine = parameters(0)
    optimizer = AdamW(mine, lr=1e-2)
    for seed in range(3):
        step(mine, optimizer, seed)
    others = [torch.nn.Parameter(param.detach().clone()) for param in mine]
    restored = AdamW(others, lr=1e-2)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(mine, optimizer, seed)
        step(others, restored, seed)
    for one, other in zip(mine, others, strict=True):
        assert torch.equal(one, other)
    assert [group["step"] for group in restored.param_groups] == [6]


def test_one_shared_step_tensor_does_no_harm() -> None:
    """What megatron-core hands to `load_state_dict`: one `step` tensor for all parameters."""
    mine = parameters(0)
    optimizer = AdamW(mine, lr=1e-2)
    step(mine, optimizer, 0)
    state = optimizer.state_dict()
    shared = torch.tensor(1.0)
    for entry in state["state"].values():
        entry["step"] = shared
    optimizer.load_state_dict(state)
    step(mine, optimizer, 1)
    assert optimizer.param_groups[0]["step"] == 2 and shared.item() == 1.0


def test_a_parameter_without_gradient_stays() -> None:
    mine = parameters(0)
    before = mine[0].detach().clone()
    optimizer = AdamW(mine, lr=1e-2, weight_decay=0.5)
    mine[1].grad = torch.ones_like(mine[1])
    optimizer.step()
    assert torch.equal(mine[0], before)
