"""Each rank's own entries of a checkpoint's metadata: the chunks that overlap what the rank is about to read.

`.metadata` describe every shard of every rank that wrote, some 7 kB a rank: sent whole to each of 8,192 ranks they are
56 MB a rank, 460 GB in all. Rank 0 alone reads them. Each rank sends it the regions that it wants, and receives the
chunks that hold them: what a rank sends and receives does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megatron_kaiyuan.cluster.groups import scatter_from_rank_0

# The name in the checkpoint; first index and length in each dimension, none for an object.
Region = tuple[str, tuple[int, ...], tuple[int, ...]]


def receive_entries(metadata: Metadata | None, wanted: Iterable[ShardedTensor | ShardedObject]) -> Metadata:
    """Return the metadata of what this rank is about to read. Collective.

    Args:
        metadata: of the whole checkpoint, checked; on rank 0 alone.
        wanted: may differ from rank to rank.
    """
    regions = [_region(value) for value in wanted]
    asked: list[Any] | None = None if metadata is None else [None] * torch.distributed.get_world_size()
    torch.distributed.gather_object(regions, asked)

    def answers() -> list[Metadata]:
        assert metadata is not None and asked is not None
        entries = Entries(metadata)
        return [entries.of(one) for one in asked]

    return scatter_from_rank_0(answers)


def _region(value: ShardedTensor | ShardedObject) -> Region:
    if isinstance(value, ShardedObject):
        return value.unique_key, (), ()
    # Of a tensor that is one of several stacked ones, the shape is that of the one.
    stacked = (1,) * (len(value.global_offset) - len(value.local_shape))
    return value.key, tuple(value.global_offset), (*stacked, *value.local_shape)


class Entries:
    """Metadata whose chunks are found by region, each in the time of a binary search."""

    def __init__(self, metadata: Metadata):
        self._metadata = metadata
        self._chunks: dict[str, _Chunks] = {}

    def of(self, regions: Iterable[Region]) -> Metadata:
        """Return the entries of the named tensors and objects, each with the chunks that overlap a region of it.

        A name that the checkpoint does not hold is left out; megatron-core reports it.
        """
        described: dict[str, Any] = {}
        places: dict[MetadataIndex, Any] = {}
        whole, storage = self._metadata.state_dict_metadata, self._metadata.storage_data
        for name, offsets, sizes in regions:
            entry = whole.get(name)
            if not isinstance(entry, TensorStorageMetadata):
                if entry is not None:
                    described[name], places[MetadataIndex(name)] = entry, storage[MetadataIndex(name)]
                continue
            mine = described.setdefault(name, replace(entry, chunks=[]))
            # Another shape is an error, which megatron-core reports.
            found = self._of_tensor(name, entry).overlapping(offsets, sizes) if len(offsets) == len(entry.size) else []
            for chunk in found:
                index = MetadataIndex(name, chunk.offsets)
                if index not in places:
                    places[index] = storage[index]
                    mine.chunks.append(chunk)
        return Metadata(described, storage_data=places)

    def _of_tensor(self, name: str, entry: TensorStorageMetadata) -> _Chunks:
        if name not in self._chunks:
            self._chunks[name] = _Chunks(entry)
        return self._chunks[name]


class _Chunks:
    """The chunks of one tensor, in the order of their first elements in the flattened tensor."""

    def __init__(self, entry: TensorStorageMetadata):
        # Row-major, in elements.
        self._strides = np.array([int(np.prod(entry.size[axis + 1 :])) for axis in range(len(entry.size))], np.int64)
        chunks = [chunk for chunk in entry.chunks if all(chunk.sizes)]
        shape = (len(chunks), len(entry.size))
        starts = np.array([tuple(chunk.offsets) for chunk in chunks], np.int64).reshape(shape)
        stops = starts + np.array([tuple(chunk.sizes) for chunk in chunks], np.int64).reshape(shape)
        order = np.argsort(starts @ self._strides, kind="stable")
        self._chunks = [chunks[place] for place in order]
        self._starts, self._stops = starts[order], stops[order]
        self._first = self._starts @ self._strides
        # The largest last element up to each chunk: no chunk before a place with a smaller one reaches further.
        self._last = np.maximum.accumulate((self._stops - 1) @ self._strides)

    def overlapping(self, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> list[ChunkStorageMetadata]:
        if not all(sizes):
            return []
        start = np.array(offsets, np.int64)
        stop = start + np.array(sizes, np.int64)
        begin = int(np.searchsorted(self._last, start @ self._strides, side="left"))
        end = int(np.searchsorted(self._first, (stop - 1) @ self._strides, side="right"))
        near = slice(begin, end)
        overlaps = np.all((self._starts[near] < stop) & (self._stops[near] > start), axis=1)
        return [self._chunks[begin + place] for place in np.flatnonzero(overlaps)]
