"""Core attention against its definition in float64."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from megatron_kaiyuan.backend import attention
from megatron_kaiyuan.backend.attention import (
    document_mask,
    flex_attention,
    split_attention,
    torch_attention,
)
from tests.helpers.references.attention import by_definition, numbers

KERNELS = {"torch": torch_attention, "split": split_attention}


def random(length: int, heads: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """[2, heads, s, d] as it comes from the projection: tokens first in memory."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(length, 2, heads, size, generator=drawn, dtype=torch.float64).permute(1, 2, 0, 3)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(
    ("kernel", "documents"),
    [
        ("torch", None),
        *(
            (kernel, documents)
            for kernel in KERNELS
            for documents in (numbers([700], [700]), numbers([1, 299, 300, 100], [520, 1, 179]))
        ),
    ],
    ids=["torch, causal", "torch, one", "torch, several", "split, one", "split, several"],
)
def test_values_and_gradients(kernel: str, documents: torch.Tensor | None, groups: int) -> None:
    query, key, value = inputs = [random(700, heads, seed=heads).requires_grad_() for heads in (4, groups, groups)]
    hidden = document_mask(torch.zeros(2, 700) if documents is None else documents)
    expected = by_definition(query, key, value, 0.3, hidden)
    found = KERNELS[kernel](query, key, value, 0.3, documents)
    torch.testing.assert_close(found, expected)
    weights = random(700, 4, seed=9)
    gradients = [torch.autograd.grad(output, inputs, weights) for output in (found, expected)]
    for of_found, of_expected in zip(*gradients, strict=True):
        torch.testing.assert_close(of_found, of_expected)


def test_a_mask_is_made_once_and_goes_with_its_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []

    def make(documents_bs: torch.Tensor) -> torch.Tensor:
        mask = document_mask(documents_bs)
        made.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(attention, "document_mask", make)
    query, key, value = (random(9, 2) for _ in range(3))
    documents = numbers([4, 5], [9])
    for _ in range(2):
        torch_attention(query, key, value, None, documents)
    assert len(made) == 1 and made[0]() is not None
    del documents
    assert made[0]() is None


@pytest.mark.slow  # compiles
def test_flex_attention_sees_what_a_mask_shows() -> None:
    """Its forward pass, which is all that it has on a CPU; `tests/train/test_cuda.py` has the other.

    Other documents compile nothing anew, and go with their mask.
    """
    from torch._dynamo.utils import counters

    query, key, value = (random(300, heads, seed=heads).float() for heads in (4, 2, 2))
    compiled, kept = [], []
    for rows in ([[1, 200, 99], [300]], [[300], [150, 150]], [[2, 298], [7, 293]]):
        documents = numbers(*rows)
        found = flex_attention(query, key, value, 0.3, documents)
        torch.testing.assert_close(found, torch_attention(query, key, value, 0.3, documents))
        compiled.append(counters["stats"]["unique_graphs"])
        kept += [weakref.ref(mask) for mask in attention._block_masks.values()]
        del documents
        gc.collect()
    assert compiled[0] > 0 and len(set(compiled)) == 1
    assert len(kept) == 3 and not any(mask() for mask in kept)
