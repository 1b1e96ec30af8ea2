"""Sizes of tensors against NumPy in float64, over several blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_kaiyuan.backend.attention import document_mask
from megatron_kaiyuan.monitor.headroom import headroom_bits
from megatron_kaiyuan.monitor.sizes import (
    largest_attention_logit,
    largest_attention_logit_by_head,
    sizes,
)
from megatron_kaiyuan.platform.blocks import block_elements

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 2, 5), (1000, 2, 400), (3, 2, block_elements("cpu"))])
def test_sizes_are_numpys(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (100 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    tensor[-1, 0, -1] = -30000
    before, exact = tensor.clone(), np.abs(tensor.double().numpy())
    found = sizes(tensor)
    assert torch.equal(tensor, before)
    assert all(value.dtype == torch.float32 and value.shape == () for value in found)
    np.testing.assert_allclose(found.mean, exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.mean_square, (exact**2).mean(), rtol=1e-4)
    assert found.peak == exact.max()


def test_sizes_do_not_overflow_with_half_precision() -> None:
    full = sizes(torch.full((300, 2, 1000), 65504.0, dtype=torch.float16))
    np.testing.assert_allclose(full.mean, 65504, rtol=1e-6)
    np.testing.assert_allclose(full.mean_square, 65504.0**2, rtol=1e-3)
    for value in (torch.inf, torch.nan):
        tensor = torch.ones(4, 2, 3)
        tensor[3, 1, 2] = value
        assert not any(map(torch.isfinite, sizes(tensor)))


@pytest.mark.parametrize("documents", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_largest_attention_logit_is_that_of_all_scores(documents: bool, groups: int, dtype: torch.dtype) -> None:
    """600 tokens are several blocks; what attention does not look at is made larger than what it does."""
    length, batch, heads, size = 600, 2, 4, 16
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(length, batch, heads, size, generator=generator)
    key = torch.randn(length, batch, groups, size, generator=generator)
    # The last tokens' keys, which only the last queries may look at, are large, and those queries small.
    key[-3:], query[-3:] = 100 * key[-3:], query[-3:] / 1000
    query, key = query.to(dtype), key.to(dtype)
    starts = torch.zeros(batch, length, dtype=torch.int64)
    if documents:
        starts[0, 250:], starts[1, 400:] = 1, 1
    hidden = document_mask(starts)
    found = largest_attention_logit(query, key, 0.3, starts if documents else None)

    keys = key.double().repeat_interleave(heads // groups, dim=2)
    scores = 0.3 * torch.einsum("sbnd,tbnd->bnst", query.double(), keys)
    expected = scores.masked_fill(hidden, 0).abs().max()
    assert scores.abs().max() > 2 * expected
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    by_head = largest_attention_logit_by_head(query, key, 0.3, starts if documents else None)
    np.testing.assert_allclose(by_head, scores.masked_fill(hidden, 0).amax((0, 2, 3)), rtol=1e-5)


def test_headroom_in_bits() -> None:
    assert headroom_bits(65504) == 0 and headroom_bits(65504 / 8) == 3 and headroom_bits(131008) == -1
    assert headroom_bits(0) == pytest.approx(40, abs=0.001)
    assert headroom_bits(float("inf")) == headroom_bits(float("nan")) == -float("inf")
