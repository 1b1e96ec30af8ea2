"""A fused kernel is used only where it computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_kaiyuan.platform.npu_kernels import has_kernel, probe

Answer = tuple[torch.Tensor, torch.Tensor]


def by_hand(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> Answer:
    inverse = torch.rsqrt(values.float().square().mean(-1, keepdim=True) + epsilon)
    return (values.float() * inverse).to(values.dtype) * gamma, inverse


def without_weight(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> Answer:
    return by_hand(values, torch.ones_like(gamma) + 0 * gamma)


def with_wrong_gradient(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> Answer:
    output, inverse = by_hand(values, gamma, epsilon)
    return output.detach() + (values + gamma) * 0, inverse


def not_finite(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> Answer:
    return values * torch.nan + gamma, values


def without_half(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> Answer:
    if values.dtype == torch.float16:
        raise RuntimeError("not supported\nERR01007 OPS feature not supported")
    return by_hand(values, gamma, epsilon)


def tried(**kernels: Callable[..., Any]) -> tuple[list[str], dict[str, str]]:
    fused, found = probe(SimpleNamespace(**kernels), torch.device("cpu"), ("fp32", "fp16"))
    return list(fused), found


def tried_norm(kernel: Callable[..., Answer]) -> tuple[bool, str]:
    fused, found = tried(npu_rms_norm=kernel)
    return "norm" in fused, found["norm"]


def test_a_right_kernel_is_used() -> None:
    state = torch.get_rng_state()
    assert tried_norm(by_hand) == (True, "npu_rms_norm agrees with torch, forward and backward")
    assert torch.equal(torch.get_rng_state(), state)
    fused, _ = probe(SimpleNamespace(npu_rms_norm=by_hand), torch.device("cpu"), ("fp32", "bf16", "fp16"))
    values, weight, norm = torch.randn(3, 64), torch.randn(64), fused["norm"]
    torch.testing.assert_close(norm(values, weight, 0.1), torch.nn.functional.rms_norm(values, (64,), weight, 0.1))


@pytest.mark.parametrize("kernel", [without_weight, with_wrong_gradient, not_finite])
def test_a_wrong_kernel_is_not(kernel: Callable[..., Answer]) -> None:
    assert tried_norm(kernel) == (False, "npu_rms_norm differs from torch in fp32")


def test_a_kernel_that_fails_in_one_precision_is_not() -> None:
    assert tried_norm(without_half) == (False, "npu_rms_norm fails in fp16 (not supported)")


def test_no_kernel_at_all() -> None:
    told = {"norm": "torch_npu has no npu_rms_norm", "swiglu": "torch_npu has no npu_swiglu"}
    assert tried() == ([], told)


def test_swiglu_with_its_halves_the_other_way_round_is_not_used() -> None:
    def right(values: torch.Tensor, dim: int) -> torch.Tensor:
        gate, up = values.chunk(2, dim)
        return torch.nn.functional.silu(gate) * up

    def wrong(values: torch.Tensor, dim: int) -> torch.Tensor:
        return right(values.roll(values.size(dim) // 2, dim), dim)

    assert tried(npu_swiglu=right)[0] == ["swiglu"]
    fused, found = tried(npu_swiglu=wrong)
    assert fused == [] and found["swiglu"] == "npu_swiglu differs from torch in fp32"


def test_no_torch_npu_has_registered_kernels_here() -> None:
    """The dispatcher answers for the CPU's kernels, so that its no for an NPU says something."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", "CPU")
    assert not has_kernel("aten::_fused_adamw_")
