"""A rank's own entries of a checkpoint's metadata, beside torch's plan of what to read with all of them."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_kaiyuan.checkpoint.own_entries import Entries
from megatron_kaiyuan.optim.sharded import rectangles

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


def described(tensors: dict[str, tuple[tuple[int, ...], list[ChunkStorageMetadata]]]) -> Metadata:
    entries: dict[str, Any] = {}
    places = {}
    for name, (shape, chunks) in tensors.items():
        entries[name] = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), chunks)
        for number, chunk in enumerate(chunks):
            places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(f"__{number}_0.distcp", 0, 4)
    return Metadata(entries, storage_data=places)


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


@st.composite
def cut(draw: st.DrawFn, shape: tuple[int, ...]) -> list[ChunkStorageMetadata]:
    """Disjoint chunks of the whole tensor: a grid, as tensor parallel ranks have it, or ranges of its elements."""
    if draw(st.booleans()):
        axes = []
        for length in shape:
            cuts = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=3))})
            axes.append([(a, b - a) for a, b in itertools.pairwise(cuts)])
        chunks = [chunk(tuple(a for a, _ in one), tuple(b for _, b in one)) for one in itertools.product(*axes)]
    else:
        size = math.prod(shape)
        cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})
        pieces = (one for a, b in itertools.pairwise(cuts) for one in rectangles(shape, a, b))
        chunks = [chunk(*one) for one in pieces]
    return draw(st.permutations(chunks))


def reads(metadata: Metadata, name: str, region: ChunkStorageMetadata) -> set[Any]:
    items = create_read_items_for_chunk_list(name, metadata.state_dict_metadata[name], [region])  # type: ignore[arg-type]
    files = {one.storage_index: metadata.storage_data[one.storage_index].relative_path for one in items}
    return {(files[one.storage_index], one.storage_offsets, one.dest_offsets, one.lengths) for one in items}


@given(data=st.data(), shape=SHAPES)
def test_plan_of_reads_is_that_of_all_metadata(data: st.DataObject, shape: tuple[int, ...]) -> None:
    whole = described({"a": (shape, data.draw(cut(shape))), "other": ((2,), [chunk((0,), (2,))])})
    entries = Entries(whole)
    for _ in range(3):
        offsets = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
        sizes = tuple(data.draw(st.integers(1, length - a)) for length, a in zip(shape, offsets, strict=True))
        mine = entries.of([("a", offsets, sizes)])
        assert list(mine.state_dict_metadata) == ["a"]
        assert mine.state_dict_metadata["a"].size == torch.Size(shape)  # type: ignore[union-attr]
        wanted = reads(whole, "a", chunk(offsets, sizes))
        assert wanted and reads(mine, "a", chunk(offsets, sizes)) == wanted
        # No chunk that is not read.
        assert len(mine.storage_data) == len(wanted)


def test_whole_metadata_are_left_as_they_are() -> None:
    whole = described({"a": ((4, 2), [chunk((0, 0), (2, 2)), chunk((2, 0), (2, 2))])})
    before = pickle.dumps(whole)
    mine = Entries(whole).of([("a", (1, 0), (1, 1)), ("a", (0, 1), (2, 1)), ("b", (0,), (1,)), ("a", (0,), (1,))])
    assert [tuple(one.offsets) for one in mine.state_dict_metadata["a"].chunks] == [(0, 0)]  # type: ignore[union-attr]
    assert pickle.dumps(whole) == before


def test_an_object_is_found_by_its_name() -> None:
    whole = described({})
    whole.state_dict_metadata["random/shard_0_1"] = BytesStorageMetadata()
    whole.storage_data[MetadataIndex("random/shard_0_1")] = _StorageInfo("__0_0.distcp", 0, 7)
    mine = Entries(whole).of([("random/shard_0_1", (), ())])
    assert mine.state_dict_metadata == whole.state_dict_metadata and mine.storage_data == whole.storage_data


@pytest.mark.parametrize(("rows", "columns"), [(64, 1), (1, 64), (64, 8)])
def test_size_of_an_answer_does_not_grow_with_the_ranks_that_wrote(rows: int, columns: int) -> None:
    """Rows and columns of a grid, as data- and tensor-parallel ranks cut a weight."""
    sizes = []
    for factor in (1, 8):
        grid = itertools.product(range(0, factor * rows), range(0, columns))
        chunks = [chunk((4 * row, 8 * column), (4, 8)) for row, column in grid]
        whole = described({"a": ((4 * factor * rows, 8 * columns), chunks)})
        middle = chunks[len(chunks) // 2]
        sizes.append(len(pickle.dumps(Entries(whole).of([("a", tuple(middle.offsets), (4, 8))]))))
    assert abs(sizes[1] - sizes[0]) < 10
