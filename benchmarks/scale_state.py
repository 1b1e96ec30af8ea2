"""The state of any rank of a data-parallel job, for `benchmarks.scale_start`: shards, plan, written files, wishes.

A network of 28 layers with 31 million parameters: as many weights and as many rectangles a rank as one of 2 billion,
and a 64th of its bytes. Optimizer state is cut over all ranks, weights are held by each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.scale_alone import rectangles_of
from megatron_kaiyuan.files import DIGEST_PREFIX, checksum

SHAPES = {
    "qkv": (28, 384, 256),
    "proj": (28, 256, 256),
    "fc1": (28, 1536, 256),
    "fc2": (28, 256, 768),
    "embedding": (18992, 256),
    "head": (18992, 256),
}
_STATE, _STATES = "optimizer.state.", ("param", "exp_avg", "exp_avg_sq")
_FORM_BYTES = 1200  # of a tensor in torch.save's form


class RankState:
    """What each rank of `ranks` holds."""

    def __init__(self, ranks: int):
        self.ranks = ranks

    def shards(self, rank: int, meta: bool = False) -> dict[str, Any]:
        """Return megatron-core's sharded tensors of one rank, filled with numbers that depend on rank and name."""
        import torch
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        found: dict[str, Any] = {}
        for key, shape, offset, size, is_own in self._described(rank):
            dtype = torch.float32 if is_own else torch.float16
            data = torch.empty(size, dtype=dtype, device="meta" if meta else "cpu")
            if not meta:
                data.fill_(len(found) + 1.5)
            replica: Any = 0 if is_own else (0, 0, rank)
            found[f"{key}@{offset}"] = ShardedTensor(
                key, data, dtype, size, shape, offset, axis_fragmentations=None, replica_id=replica
            )
        return found

    def _described(self, rank: int) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]]:
        for name, shape in SHAPES.items():
            layers = range(shape[0]) if len(shape) == 3 else [None]
            for layer in layers:
                if layer is None:
                    yield f"network.{name}", shape, (0, 0), shape, False
                else:
                    yield f"network.{name}", shape, (layer, 0, 0), (1, *shape[1:]), False
        for name, shape, offset, size in rectangles_of(SHAPES, rank, self.ranks):
            for state in _STATES:
                yield f"{_STATE}{state}.{name}", shape, offset, size, True

    @cached_property
    def names(self) -> set[str]:
        """The names of all tensors."""
        prefixes = ["network.", *(f"{_STATE}{state}." for state in _STATES)]
        return {prefix + name for prefix in prefixes for name in SHAPES}

    @cached_property
    def _keepers(self) -> list[int]:
        """The rank that writes, and reads, each weight."""
        from megatron_kaiyuan.checkpoint.verify import spread

        sizes = [2 * math.prod(size) for _, _, _, size, is_own in self._described(0) if not is_own]
        return spread(sizes, self.ranks)

    def _kept(self, rank: int) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]]:
        """What one rank writes and reads, of what it holds."""
        weights = itertools.count()
        for one in self._described(rank):
            if one[4] or self._keepers[next(weights)] == rank:
                yield one

    def plan(self, rank: int) -> Any:
        """Return what a rank sends to be planned before a save."""
        import torch
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

        items = []
        for key, shape, offset, size, is_own in self._kept(rank):
            chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
            properties = TensorProperties(torch.float32 if is_own else torch.float16)
            data = TensorWriteData(chunk, properties, torch.Size(shape))
            items.append(WriteItem(MetadataIndex(key, chunk.offsets), WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items)

    def written(self, rank: int, folder: Path, is_real: bool) -> tuple[list[Any], dict[str, Any]]:
        """Write a rank's file; return what the rank reports of it.

        Args:
            is_real: with the rank's tensors in it; else a file of holes.
        """
        import torch
        from torch.distributed.checkpoint.filesystem import _StorageInfo
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.storage import WriteResult

        shards = self.shards(rank) if is_real else {}
        path, place, results = folder / f"__{rank}_0.distcp", 0, []
        with open(path, "wb") as file:
            for key, _, offset, size, is_own in self._kept(rank):
                if is_real:
                    torch.save(shards[f"{key}@{offset}"].data, file)
                    length = file.tell() - place
                else:
                    length = (4 if is_own else 2) * math.prod(size) + _FORM_BYTES
                index = MetadataIndex(key, torch.Size(offset))
                results.append(WriteResult(index, length, _StorageInfo(path.name, place, length)))
                place += length
            file.truncate(place)
        return results, {path.name: {"bytes": place, "checksum": checksum(path) if is_real else _of_zeros(place)}}

    def wanted(self, rank: int) -> list[Any]:
        """Return the regions that a rank asks rank 0 for on resume."""
        return [(key, offset, size) for key, _, offset, size, _ in self._kept(rank)]


@cache
def _of_zeros(size: int) -> str:
    return f"{DIGEST_PREFIX}{xxhash.xxh3_128_hexdigest(bytes(size))}"
