"""Against the same formulas written plainly: gradients by finite differences in float64, half precision by rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from megatron_kaiyuan.backend.formulas import EAGER, Formulas, compiled
from megatron_kaiyuan.backend.operations import rms_norm, rotate, swiglu

EPSILON = 1e-6
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(length: int, size: int) -> torch.Tensor:
    half = torch.arange(length).double()[:, None] * 100.0 ** -(torch.arange(size // 2).double() * 2 / size)
    return torch.cat((half, half), -1)[:, None, None, :]


def plain_norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return values / (values.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def plain_swiglu(values: torch.Tensor) -> torch.Tensor:
    gate, up = values.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def plain_rotate(values: torch.Tensor) -> torch.Tensor:
    """As multiplication of complex numbers by e^(i angle)."""
    first, second = values.chunk(2, -1)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), angles(values.size(0), values.size(-1)).chunk(2, -1)[0])
    turned = torch.complex(first.double(), second.double()) * turn
    return torch.cat((turned.real, turned.imag), -1)


Function = Callable[..., torch.Tensor]
CASES: dict[str, tuple[Function, Function, list[torch.Tensor]]] = {
    "rms_norm": (
        lambda formulas, values, weight: rms_norm(values, weight, EPSILON, values.dtype, formulas),
        plain_norm,
        [random(3, 2, 8), 1 + random(8, seed=1)],
    ),
    "swiglu": (lambda formulas, values: swiglu(values, formulas), plain_swiglu, [3 * random(3, 2, 10)]),
    "rotated queries": (
        lambda formulas, query, key: rotate(query, key, angles(5, 6), formulas)[0],
        lambda query, key: plain_rotate(query) + 0 * key.sum(),
        [random(5, 2, 4, 6), random(5, 2, 2, 6, seed=1)],
    ),
    "rotated keys": (
        lambda formulas, query, key: rotate(query, key, angles(5, 6), formulas)[1],
        lambda query, key: plain_rotate(key) + 0 * query.sum(),
        [random(5, 2, 4, 6), random(5, 2, 2, 6, seed=1)],
    ),
}
ALL = pytest.mark.parametrize("case", CASES)


# Each case compiles for a few seconds: `bash tests/run.sh -m slow tests/backend`.
@pytest.fixture(params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def formulas(request: pytest.FixtureRequest) -> Formulas:
    return EAGER if request.param == "eager" else compiled()


@ALL
def test_values_and_gradients_in_float64(case: str, formulas: Formulas) -> None:
    function, plain, inputs = CASES[case]
    function = partial(function, formulas)
    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    torch.testing.assert_close(function(*leaves), plain(*leaves), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(function, leaves)


@ALL
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_lower_precisions_are_near_the_float64_result(case: str, dtype: torch.dtype, formulas: Formulas) -> None:
    function, plain, inputs = CASES[case]
    function = partial(function, formulas)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in inputs]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    output, expected = function(*leaves), plain(*exact)
    assert output.dtype == dtype
    gradient = random(*output.shape, seed=2).to(dtype)
    output.backward(gradient)
    expected.backward(gradient.double())
    tolerance = TOLERANCES[dtype]
    for found, wanted in (
        (output, expected),
        *((leaf.grad, other.grad) for leaf, other in zip(leaves, exact, strict=True)),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_large_half_precision_values_stays_in_range(dtype: torch.dtype) -> None:
    """Their squares are beyond FP16."""
    values = torch.full((2, 64), 60000.0, dtype=dtype)
    torch.testing.assert_close(rms_norm(values, torch.ones(64, dtype=dtype), EPSILON, dtype), torch.ones_like(values))


def test_a_norm_between_precisions_rounds_once() -> None:
    values, weight = random(4, 64).float(), (1 + random(64, seed=1)).half()
    expected = plain_norm(values.double(), weight.double())
    assert rms_norm(values, weight, EPSILON, torch.float32).dtype == torch.float32
    torch.testing.assert_close(rms_norm(values, weight, EPSILON, torch.float16), expected.half(), rtol=2**-10, atol=0)
    torch.testing.assert_close(
        rms_norm(values.half(), weight, EPSILON, torch.float32),
        plain_norm(values.half().double(), weight.double()).float(),
    )
