"""Shards that all data-parallel ranks hold: one of them writes each, one of them reads it for the others.

megatron-core has wrappers for both (`FullyParallelSaveStrategyWrapper`, `FullyParallelLoadStrategyWrapper`). They
gather the description of every shard on every rank and compare every shard with every rank, for which each of 8,192
ranks needs minutes. Here each rank finds its share alone: the ranks of a data-parallel group hold the same shards in
the same order, which one all-reduce checks.

A shard that they all hold has a tuple for its replica, which ends in the data-parallel rank, as megatron-core gives it.
A shard of one rank (a piece of a distributed optimizer's state) has a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from torch.distributed.checkpoint.metadata import Metadata

from megatron_kaiyuan.checkpoint.own_entries import receive_entries
from megatron_kaiyuan.checkpoint.verify import spread
from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.platform import current
from megatron_kaiyuan.platform.megatron import reading_without_other_ranks

_DIGEST_BITS = 24  # a whole number that FP32 holds


def share_out(tensors: dict[str, Any]) -> None:
    """Mark each shard that all data-parallel ranks hold as to be written by one of them. Collective."""
    group = _group()
    shards = [shard for shard in _replicated(tensors) if not any(shard.replica_id[:-1])]  # type: ignore[index]
    _require_same(shards, group)
    rank = torch.distributed.get_rank(group)
    for shard, writer in zip(shards, _spread(shards, group), strict=True):
        shard.replica_id = int(writer != rank)


class ReadOnce(TorchDistLoadShardedStrategy):
    """megatron-core's reading of torch_dist, but that no two ranks of a data-parallel group read the same.

    Args:
        metadata: of the checkpoint, on rank 0 alone, which sends each rank its own entries.
        reading: what makes one error of all that a rank may meet while it reads.
    """

    def __init__(self, metadata: Metadata | None, reading: Callable[[], contextlib.AbstractContextManager[None]]):
        super().__init__()
        self._metadata, self._reading = metadata, reading

    def restore(self, sharded_state: dict[str, Any], common: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return the common state with every shard that `sharded_state` describes in its place. Collective.

        As megatron-core's `dist_checkpointing.load`, but no rank reads the common state again, and which shards there
        are is not checked: that is done when they are saved, and to gather what each rank asks for takes minutes.
        """
        shards, values, factories = load_preprocess(sharded_state)
        merge(common, values)
        shards, _ = extract_sharded_base(shards)
        merge(common, self.load(shards, folder))
        return apply_factory_merges(common, factories)  # type: ignore[no-any-return]

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Any, *_: Any) -> dict[str, Any]:
        """Read this rank's share, then exchange. Collective."""
        group = _group()
        shards = _replicated(sharded_state_dict)
        _require_same(shards, group)
        rank = torch.distributed.get_rank(group)
        readers = {id(shard): reader for shard, reader in zip(shards, _spread(shards, group), strict=True)}
        values = list(nested_values(sharded_state_dict))
        # Objects, which are small, are the first rank's.
        mine = {
            str(index): value
            for index, value in enumerate(values)
            if readers.get(id(value), 0 if isinstance(value, ShardedObject) else rank) == rank
        }
        entries = receive_entries(self._metadata, mine.values())
        read = agree_on_error(lambda: self._read(mine, entries, checkpoint_dir))
        loaded = {id(values[int(index)]): content for index, content in read.items()}
        for shard in shards:
            loaded[id(shard)] = _sent(shard, loaded.get(id(shard)), readers[id(shard)], group)
        objects = [value for value in values if isinstance(value, ShardedObject)]
        if objects:
            contents = [loaded.get(id(value)) for value in objects]
            torch.distributed.broadcast_object_list(
                contents, src=torch.distributed.get_global_rank(group, 0), group=group
            )
            loaded.update((id(value), content) for value, content in zip(objects, contents, strict=True))
        dict_list_map_inplace(lambda value: loaded[id(value)], sharded_state_dict)
        return sharded_state_dict

    def _read(self, values: dict[str, Any], entries: Metadata, folder: Any) -> dict[str, Any]:
        with self._reading(), reading_without_other_ranks(Path(folder), entries):
            return super().load(values, folder)  # type: ignore[no-any-return]


def _group() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _replicated(state: dict[str, Any]) -> list[ShardedTensor]:
    """Return the shards that all data-parallel ranks hold, in one order on all of them."""
    shards = (value for value in nested_values(state) if isinstance(value, ShardedTensor))
    return [shard for shard in shards if isinstance(shard.replica_id, tuple)]


def _spread(shards: list[ShardedTensor], group: Any) -> list[int]:
    sizes = [shard.dtype.itemsize * int(torch.Size(shard.local_shape).numel()) for shard in shards]
    return spread(sizes, torch.distributed.get_world_size(group))


def _require_same(shards: list[ShardedTensor], group: Any) -> None:
    """Refuse to share out what the ranks of a group do not all hold. Collective."""
    digest = xxhash.xxh3_64()
    for shard in shards:
        digest.update(repr((shard.key, shard.global_offset, shard.local_shape, shard.dtype)).encode())
    own = digest.intdigest() % (1 << _DIGEST_BITS)
    extremes = torch.tensor([own, -own], dtype=torch.float32, device=current().device)
    torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX, group=group)
    if extremes.tolist() != [own, -own]:
        # Nothing that a user can do: megatron-core 0.16 gives them the same.
        raise RuntimeError("the data-parallel ranks of a group do not hold the same shards")


def _sent(shard: ShardedTensor, read: torch.Tensor | None, reader: int, group: Any) -> torch.Tensor:
    """Return what the reader of a shard has read of it."""
    device = current().device
    if read is None and shard.data is None:
        shard.init_data(device)
    place = shard.data.detach() if read is None else read
    # Without a copy where the tensor is on the device already, and in one piece.
    moved = place.to(device).contiguous()
    torch.distributed.broadcast(moved, src=torch.distributed.get_global_rank(group, reader), group=group)
    if read is None and moved.data_ptr() != place.data_ptr():
        place.copy_(moved)
    return place
