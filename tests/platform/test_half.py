"""Products in FP32 where a CPU has no half precision, whatever this CPU has."""

from __future__ import annotations

import pytest
import torch

from megatron_kaiyuan.platform import half
from megatron_kaiyuan.platform.precisions import DTYPES

ALL = ("bf16", "fp16")
HALVES = pytest.mark.parametrize("dtype", [DTYPES[name] for name in ALL], ids=ALL)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "matmul", torch.Tensor.matmul)
    half.multiply_in_fp32(ALL)


@HALVES
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_the_exact_one_rounded_once(dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # Whole numbers, so that sums in FP32 are exact.
    one = torch.randint(-9, 10, (3, 5, 300), generator=generator).to(dtype)
    other = torch.randint(-9, 10, (7, 300) if transposed else (300, 7), generator=generator).to(dtype)
    other = other.t() if transposed else other
    product = one.matmul(other)
    assert product.dtype == dtype
    assert torch.equal(product, (one.double() @ other.double()).to(dtype))


def test_what_leaves_the_range_is_infinite() -> None:
    large = torch.full((2, 4), 200.0, dtype=torch.float16)
    assert torch.equal(large.matmul(2 * large.t()), torch.full((2, 2), torch.inf, dtype=torch.float16))
    assert torch.isnan(large.matmul((large * torch.inf - torch.inf).t())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    one, other = torch.randn(3, 4, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    assert torch.equal(one.matmul(other), one @ other)


def test_which_ones_are_emulated_is_what_onednn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(half.emulated()) <= set(ALL)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert half.emulated() == ()


@HALVES
@pytest.mark.parametrize("apart", [False, True])
def test_attention_in_fp32_is_near_attention_in_float64(
    dtype: torch.dtype, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.config import ModelConfig, ParallelConfig

    device = platform.activate("cpu")
    monkeypatch.setattr(device, "emulated", ALL)
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_kaiyuan.model.attention import CausalAttention
    from megatron_kaiyuan.model.build import transformer_config

    config = transformer_config(ModelConfig(preset="kaiyuan-tiny"), ParallelConfig())  # type: ignore[call-arg]
    attention = CausalAttention(config, 1, AttnMaskType.causal, "self")
    documents_bs = torch.arange(17).expand(2, -1) // 6 if apart else None
    drawn = torch.Generator().manual_seed(0)
    leaves = [torch.randn(17, 2, heads, 8, generator=drawn).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = attention(*leaves, documents_bs), attention(*exact, documents_bs)
    assert found.dtype == dtype
    found.sum().backward()
    expected.sum().backward()
    tolerance = 2**-6 if dtype == torch.bfloat16 else 2**-9
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for leaf, other in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=tolerance, atol=tolerance)
