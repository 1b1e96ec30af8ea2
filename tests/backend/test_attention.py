"""Core attention against its definition in float64: every pair of a query and a key that it sees, once."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kaiyuan.backend import attention
from megatron_kaiyuan.backend.attention import Attention, document_mask, flex_attention, in_parts, torch_attention

KERNELS = {"torch": torch_attention, "parts": in_parts}


def numbers(*rows: list[int]) -> torch.Tensor:
    """[b, s], of documents of these lengths."""
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])


def random(length: int, heads: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """[2, heads, s, d] as it comes from the projection: tokens first in memory."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(length, 2, heads, size, generator=drawn, dtype=torch.float64).permute(1, 2, 0, 3)


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, hidden: torch.Tensor
) -> torch.Tensor:
    heads_per_group = query.size(1) // key.size(1)
    key, value = (part.repeat_interleave(heads_per_group, dim=1) for part in (key, value))
    scores = scale * torch.einsum("bnsd,bntd->bnst", query, key)
    return torch.einsum("bnst,bntd->bnsd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(
    "documents",
    [None, numbers([700], [700]), numbers([1, 299, 300, 100], [520, 1, 179])],
    ids=["none", "one", "several"],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients(kernel: str, documents: torch.Tensor | None, groups: int) -> None:
    inputs = [random(700, heads, seed=heads).requires_grad_() for heads in (4, groups, groups)]
    hidden = document_mask(torch.zeros(2, 700) if documents is None else documents)
    expected = by_definition(*inputs, 0.3, hidden)
    found = KERNELS[kernel](*inputs, 0.3, documents)
    torch.testing.assert_close(found, expected)
    weights = random(700, 4, seed=9)
    gradients = [torch.autograd.grad(output, inputs, weights) for output in (found, expected)]
    for of_found, of_expected in zip(*gradients, strict=True):
        torch.testing.assert_close(of_found, of_expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_round_half_precision_once(dtype: torch.dtype) -> None:
    inputs = [random(600, heads, seed=heads).to(dtype) for heads in (4, 2, 2)]
    whole = torch_attention(*inputs, None, None).double()
    exact = by_definition(*(part.double() for part in inputs), 16**-0.5, document_mask(torch.zeros(2, 600)))
    found = in_parts(*inputs, None, None)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() < 1.5 * (whole - exact).abs().max()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=6), min_size=1, max_size=2))
def test_parts_hold_each_pair_that_is_seen_once_and_none_of_two_documents(rows: list[list[int]]) -> None:
    length = max(map(sum, rows))
    documents = numbers(*([*row, length - sum(row)] if sum(row) < length else row for row in rows))
    seen = torch.zeros(len(rows), length, length, dtype=torch.int64)
    first = torch.ones(len(rows), length, dtype=torch.bool)
    for part in attention._parts(length, documents):
        square = seen[part.samples, part.queries, part.keys]
        square += torch.ones_like(square).tril() if part.is_causal else 1
        # Sums begin with the diagonal.
        assert first[part.samples, part.queries].all() == part.is_causal
        first[part.samples, part.queries] = False
    assert seen.equal((~document_mask(documents)[:, 0]).long()) and not first.any()


def test_a_mask_is_made_once_and_goes_with_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []

    def make(documents_bs: torch.Tensor) -> torch.Tensor:
        mask = document_mask(documents_bs)
        made.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(attention, "document_mask", make)
    inputs = [random(9, 2) for _ in range(3)]
    documents = numbers([4, 5], [9])
    for _ in range(2):
        torch_attention(*inputs, None, documents)
    assert len(made) == 1 and made[0]() is not None
    del documents
    assert made[0]() is None


@pytest.mark.slow  # compiles for half a minute
def test_flex_attention_sees_what_a_mask_shows() -> None:
    """Its forward pass, which is all that it has on a CPU; `tests/train/test_cuda.py` has the other."""
    inputs = [random(300, heads, seed=heads).float() for heads in (4, 2, 2)]
    documents = numbers([1, 200, 99], [300])
    kernels: list[Attention] = [flex_attention, torch_attention]
    found, expected = (kernel(*inputs, 0.3, documents) for kernel in kernels)
    torch.testing.assert_close(found, expected)
    (mask,) = attention._block_masks.values()
    kept = weakref.ref(mask)
    del documents, mask
    gc.collect()
    assert kept() is None
