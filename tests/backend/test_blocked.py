"""Blocked attention against its definition in float64; it never overflows, nor looks where it must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_kaiyuan.backend.attention import document_mask, torch_attention
from megatron_kaiyuan.backend.blocked import blocked_attention, blocked_masked_attention
from megatron_kaiyuan.platform.blocks import block_queries
from tests.helpers.references.attention import by_definition, numbers

# Of the largest element of the exact result, for the sums of the wider precisions.
SUMS = {torch.float64: 1e-12, torch.float32: 3e-6}


def tolerance(dtype: torch.dtype, largest_score: float) -> float:
    """Of the largest element of the exact result, for values and gradients.

    A score s that is rounded to a half precision is off by up to s * u, u half an ulp of 1, and its probability by that
    share; the probabilities and the result are rounded too. 1,940 drawn cases reach 0.6 of it.
    """
    return SUMS.get(dtype) or torch.finfo(dtype).eps / 2 * (2 + largest_score)


class EachResult(TorchDispatchMode):
    """Call a function with every floating-point tensor that an operation computes."""

    def __init__(self, look: Callable[[torch.Tensor], None]):
        super().__init__()
        self._look = look

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        is_view = any(of.alias_info and not of.alias_info.is_write for of in function._schema.returns)
        # What is only reserved holds anything, and so does a view of it.
        if not is_view and "empty" not in str(function):
            for part in tree_leaves(result):
                if isinstance(part, torch.Tensor) and part.is_floating_point():
                    self._look(part)
        return result


def drawn(length: int, heads: int, groups: int, size: int, batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys, values and a gradient as projections lay them: tokens first in memory."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(length, batch, count, size) for count in (heads, groups, groups, heads)]
    return [torch.randn(shape, generator=generator).to(dtype).permute(1, 2, 0, 3) for shape in shapes]


def passes(attend: Callable[..., torch.Tensor], parts: list[torch.Tensor], *rest: Any) -> list[torch.Tensor]:
    """Output and gradients."""
    leaves = [part.detach().requires_grad_() for part in parts[:3]]
    output = attend(*leaves, *rest)
    return [output.detach(), *torch.autograd.grad(output, leaves, parts[3])]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).abs().amax() / expected.abs().amax()).item()


@settings(max_examples=25, deadline=None)
@example(length=238, groups=1, heads_per_group=3, size=24, batch=2, dtype=torch.bfloat16, cuts=[], as_mask=False)
@given(
    length=st.integers(1, 300),
    groups=st.integers(1, 3),
    heads_per_group=st.integers(1, 3),
    size=st.sampled_from([4, 24]),
    batch=st.integers(1, 2),
    dtype=st.sampled_from([*SUMS, torch.float16, torch.bfloat16]),
    cuts=st.lists(st.integers(1, 299), max_size=3),
    as_mask=st.booleans(),
)
def test_values_and_gradients(
    length: int,
    groups: int,
    heads_per_group: int,
    size: int,
    batch: int,
    dtype: torch.dtype,
    cuts: list[int],
    as_mask: bool,
) -> None:
    """Causal, within documents, and under Megatron's mask of one sample or of all."""
    parts = drawn(length, groups * heads_per_group, groups, size, batch, dtype)
    ends = sorted({cut for cut in cuts if cut < length} | {length})
    rows = [[end - start for start, end in zip([0, *ends], ends, strict=False)]] * batch
    documents = numbers(*rows) if len(ends) > 1 else None
    hidden = document_mask(torch.zeros(1, length) if documents is None else documents)
    if as_mask:
        found = passes(blocked_masked_attention, parts, 0.3, hidden)
    else:
        found = passes(blocked_attention, parts, 0.3, documents)
    exact = [part.double() for part in parts]
    expected = passes(by_definition, exact, 0.3, hidden)
    scores = 0.3 * exact[0] @ exact[1].repeat_interleave(heads_per_group, dim=1).mT
    bound = tolerance(dtype, float(scores.masked_fill(hidden, 0).abs().amax()))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        # A gradient of one token is exactly 0, where a rounding leaves something.
        assert (one.double() - other).abs().amax() <= bound * max(float(other.abs().amax()), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_exact_as_torchs(dtype: torch.dtype) -> None:
    parts = drawn(384, 4, 2, 64, 2, dtype)
    exact = passes(torch_attention, [part.double() for part in parts], None, None)
    found, theirs = (passes(attend, parts, None, None) for attend in (blocked_attention, torch_attention))
    for ours, other, expected in zip(found, theirs, exact, strict=True):
        assert distance(ours, expected) < 2 * distance(other, expected)


@pytest.mark.parametrize("score", [-30000.0, -100.0, 0.0, 30000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_hidden_has_no_share_and_nothing_overflows(dtype: torch.dtype, score: float) -> None:
    """Scores of FP16's range, of which the visible ones are the lowest: the others' values make no difference.

    Every number on the way is finite: a 910A has a register for those that are not.
    """
    length = 200
    parts = drawn(length, 2, 1, 16, 1, dtype)
    query, key, value, gradient = (part.clone() for part in parts)
    # A query and the keys up to its own are far apart, in the first dimension, and it is near the later ones.
    query[..., 0] = 1.0
    key[..., 0] = torch.linspace(score, -score, length).to(dtype)
    # A later one's value, seen by the last query alone, by which nothing is asked.
    loud = value.clone()
    loud[:, :, -1] = 1000.0
    gradient[:, :, -1] = 0.0
    lost: list[torch.Tensor] = []
    results = []
    with EachResult(lambda part: lost.append(part) if not part.isfinite().all() else None):
        for values in (value, loud):
            results.append(passes(blocked_attention, [query, key, values, gradient], 1.0, None))
    assert not lost
    (quiet, *quiet_gradients), (other, *other_gradients) = results
    assert quiet[:, :, :-1].equal(other[:, :, :-1])
    # The first query sees itself only.
    assert quiet[:, :, 0].equal(value[:, :, 0].expand_as(quiet[:, :, 0]))
    # The last key has no share in what other queries gave.
    assert quiet_gradients[2][:, :, -1].count_nonzero() == 0 == other_gradients[2][:, :, -1].count_nonzero()
    assert quiet_gradients[1][:, :, -1].count_nonzero() == 0


def test_an_overflow_is_seen() -> None:
    """A score beyond FP16, which torch's own attention shows as NaN too."""
    query, key, value, _ = drawn(130, 1, 1, 16, 1, torch.float16)
    query[..., 5, 0] = key[..., 5, 0] = 300.0
    assert not blocked_attention(query, key, value, 1.0, None)[:, :, 5].isfinite().any()


def test_no_tensor_holds_all_scores() -> None:
    """Three of a block's are alive at once, where the definition has three of all pairs and saves one."""
    length, heads = 1024, 4
    parts = drawn(length, heads, 2, 8, 3, torch.float32)
    largest = 0

    def look(part: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, part.numel())

    with EachResult(look):
        passes(blocked_attention, parts, None, numbers([600, 424], [1024], [1, 1023]))
    assert largest == heads * block_queries(heads, length) * length == heads * length**2 / 8


def test_inputs_alone_are_saved() -> None:
    parts = [part.requires_grad_() for part in drawn(256, 4, 2, 8, 2, torch.float16)[:3]]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: saved.append(part) or part, lambda part: part):
        blocked_attention(parts[0], parts[1], parts[2], None, None)
    assert [part.data_ptr() for part in saved] == [part.data_ptr() for part in parts]


def test_it_repeats_bit_by_bit() -> None:
    parts = drawn(300, 4, 2, 16, 2, torch.float32)
    one, other = (passes(blocked_attention, parts, None, numbers([100, 200], [300])) for _ in range(2))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("heads", "length", "expected"),
    [(16, 4096, 512), (16, 4000, 512), (64, 4096, 128), (1, 100, 128), (16, 8192, 256), (2, 2048, 256)],
)
def test_blocks_of_queries(heads: int, length: int, expected: int) -> None:
    assert block_queries(heads, length) == expected
