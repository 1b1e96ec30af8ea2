"""Whether a fused kernel computes what torch computes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from megatron_kaiyuan.platform.npu_kernels import fused_kernel, problem

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


def norm_problem(kernel: Callable[..., Answer], precisions: tuple[str, ...] = ("fp32", "fp16")) -> str | None:
    return problem(SimpleNamespace(npu_rms_norm=kernel), "norm", torch.device("cpu"), precisions)


def test_a_right_kernel_agrees() -> None:
    state = torch.get_rng_state()
    assert norm_problem(by_hand, ("fp32", "bf16", "fp16")) is None
    assert torch.equal(torch.get_rng_state(), state)
    values, weight, norm = (
        torch.randn(3, 64),
        torch.randn(64),
        fused_kernel(SimpleNamespace(npu_rms_norm=by_hand), "norm"),
    )
    torch.testing.assert_close(norm(values, weight, 0.1), torch.nn.functional.rms_norm(values, (64,), weight, 0.1))


@pytest.mark.parametrize("kernel", [without_weight, with_wrong_gradient, not_finite])
def test_a_wrong_kernel_differs(kernel: Callable[..., Answer]) -> None:
    assert norm_problem(kernel) == "differs from torch in fp32"


def test_a_kernel_that_fails_in_one_precision() -> None:
    assert norm_problem(without_half) == "fails in fp16 (not supported)"


def test_no_kernel_at_all() -> None:
    assert problem(SimpleNamespace(), "norm", torch.device("cpu"), ("fp32",)) == "is not in this torch_npu"


def test_swiglu_with_its_halves_the_other_way_round() -> None:
    def right(values: torch.Tensor, dim: int) -> torch.Tensor:
        gate, up = values.chunk(2, dim)
        return torch.nn.functional.silu(gate) * up

    def wrong(values: torch.Tensor, dim: int) -> torch.Tensor:
        return right(values.roll(values.size(dim) // 2, dim), dim)

    def swiglu_problem(kernel: Callable[..., torch.Tensor]) -> str | None:
        return problem(SimpleNamespace(npu_swiglu=kernel), "swiglu", torch.device("cpu"), ("fp32", "fp16"))

    assert swiglu_problem(right) is None
    assert swiglu_problem(wrong) == "differs from torch in fp32"
