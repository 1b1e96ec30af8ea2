"""Chunks that cover a tensor once, against counting every number."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_kaiyuan.checkpoint.coverage import Box, covers, require_covered, unchecked_by_torch


def counted(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    times = np.zeros(shape, dtype=int)
    for offsets, sizes in boxes:
        times[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))] += 1
    return bool((times == 1).all())


def row_cuts(shape: tuple[int, ...], cuts: list[int]) -> list[Box]:
    from megatron_kaiyuan import platform

    platform.activate("cpu")
    from megatron_kaiyuan.optim.sharded import rectangles

    bounds = [0, *sorted(cuts), math.prod(shape)]
    return [box for start, stop in itertools.pairwise(bounds) for box in rectangles(shape, start, stop)]


@given(st.data())
def test_against_counting(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    boxes = row_cuts(shape, data.draw(st.lists(st.integers(0, math.prod(shape)), max_size=4)))
    assert covers(boxes, shape)
    index = data.draw(st.integers(0, len(boxes) - 1))
    sizes = boxes[index][1]
    inside = [st.integers(0, length - size) for length, size in zip(shape, sizes, strict=True)]
    moved = [*boxes[:index], (tuple(data.draw(one) for one in inside), sizes), *boxes[index + 1 :]]
    assert covers(moved, shape) == counted(moved, shape)
    assert not covers([*boxes, boxes[index]], shape) and not covers(boxes[:index] + boxes[index + 1 :], shape)


def test_boxes_that_are_staggered() -> None:
    """Neither the same nor apart in any dimension: a pinwheel."""
    wheel: list[Box] = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    assert covers(wheel, (3, 3)) and counted(wheel, (3, 3))
    turned: list[Box] = [*wheel[:3], ((1, 0), (1, 2)), ((2, 1), (1, 1))]
    assert not covers(turned, (3, 3)) and not counted(turned, (3, 3))


class Read(tuple):
    """Counts how often its numbers are looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        Read.looks += 1
        return super().__getitem__(key)


def test_work_grows_as_the_chunks_do() -> None:
    """Sixteen times the ranks: a check in pairs would look 256 times as often."""

    def looks(ranks: int) -> int:
        shape = (28, 2048, 6144)
        boxes = row_cuts(shape, np.linspace(1, math.prod(shape) - 1, ranks).astype(int).tolist())
        Read.looks = 0
        assert covers([(Read(offsets), Read(sizes)) for offsets, sizes in boxes], shape)
        return Read.looks

    assert 0 < looks(8000) < 20 * looks(500)


def test_a_plan_with_a_hole_is_refused_by_us_and_by_torch() -> None:
    chunks = [ChunkStorageMetadata(torch.Size((start,)), torch.Size((2,))) for start in (0, 4)]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size((6,)), chunks)
    metadata = Metadata({"weight": entry})
    plans: list = [None, None]
    assert default_planner._validate_global_plan(plans, metadata)
    with unchecked_by_torch():
        assert not default_planner._validate_global_plan(plans, metadata)
    assert default_planner._validate_global_plan(plans, metadata)
    with pytest.raises(RuntimeError, match=r"^weight: the shards of all ranks do not cover it once"):
        require_covered(metadata)
    chunks.append(ChunkStorageMetadata(torch.Size((2,)), torch.Size((2,))))
    require_covered(metadata)
