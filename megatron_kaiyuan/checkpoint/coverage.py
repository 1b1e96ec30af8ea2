"""Do the chunks of a planned checkpoint cover each tensor, and none of its numbers twice?

torch's own check of a plan compares chunks in pairs, which grows by the square of the ranks that a tensor is cut over.
Chunks are cut along rows: in one dimension after the other they are either the same or apart, and sorting shows it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

# Offsets and sizes, one number for each dimension.
Box = tuple[Sequence[int], Sequence[int]]


@contextlib.contextmanager
def unchecked_by_torch() -> Iterator[None]:
    """Leave torch's check of a plan out, for the body: the caller calls `require_covered`."""
    check = default_planner._validate_global_plan
    # What it returns for a plan without a fault: it is not the same in every version.
    fine = check([], Metadata({}))
    default_planner._validate_global_plan = lambda *_: fine
    try:
        yield
    finally:
        default_planner._validate_global_plan = check


def require_covered(metadata: Metadata) -> None:
    """Refuse to write a checkpoint from which something would be missing.

    Raises:
        RuntimeError: with the tensor; ranks describe their shards wrongly, nothing that a user can mend.
    """
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        if not covers([(one.offsets, one.sizes) for one in entry.chunks], entry.size):
            raise RuntimeError(f"{name}: the shards of all ranks do not cover it once")


def covers(boxes: Sequence[Box], shape: torch.Size | Sequence[int]) -> bool:
    """Return whether boxes fill a shape, each number of it once."""
    inside = all(
        offset >= 0 and offset + size <= length
        for offsets, sizes in boxes
        for offset, size, length in zip(offsets, sizes, shape, strict=True)
    )
    filled = [box for box in boxes if math.prod(box[1])]
    return inside and sum(math.prod(sizes) for _, sizes in filled) == math.prod(shape) and _apart(filled, 0)


def _apart(boxes: Sequence[Box], dimension: int) -> bool:
    """Return whether no two boxes share a number, where they may touch in the dimensions before."""
    if len(boxes) < 2:
        return True
    if dimension == len(boxes[0][0]):
        return False
    for cluster in _clusters(boxes, dimension):
        if _apart(cluster, dimension + 1):
            continue
        same = len({(box[0][dimension], box[1][dimension]) for box in cluster}) == 1
        if same or any(_touch(one, other) for one, other in itertools.combinations(cluster, 2)):
            return False
    return True


def _clusters(boxes: Sequence[Box], dimension: int) -> Iterator[list[Box]]:
    """Yield the boxes in groups that have nothing in common in a dimension."""
    cluster: list[Box] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box[0][dimension]):
        start, stop = box[0][dimension], box[0][dimension] + box[1][dimension]
        if cluster and start >= end:
            yield cluster
            cluster = []
        end = max(end, stop) if cluster else stop
        cluster.append(box)
    if cluster:
        yield cluster


def _touch(one: Box, other: Box) -> bool:
    return all(a < b + n and b < a + m for a, m, b, n in zip(*one, *other, strict=True))
