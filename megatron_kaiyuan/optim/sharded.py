"""The optimizer's state as rectangles of whole tensors: written in parallel, read by any layout of ranks.

megatron-core cuts main weights and moments over the data-parallel ranks as ranges of flattened parameters. Its
formats either gather them first (`fully_reshardable`: the whole state once more on every rank, inside the stall of a
save) or write the ranges as they are (`dp_reshardable`: another tensor- or pipeline-parallel size cannot read them).
Here a range of a flattened parameter becomes at most three rectangles for a matrix: the end of a row, whole rows, the
start of a row. Nothing is sent and nothing copied, and on disk there are whole tensors under the names that
`fully_reshardable` uses, so that either reads what the other wrote. They do not depend on the parts of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.optim.common_state import common_state, load_common_state
from megatron_kaiyuan.optim.main_weights import MainWeights, main_weights

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
_PREFIX = "optimizer.state"


def sharded_optimizer(optimizer: ChainedOptimizer, network: dict[str, Any]) -> dict[str, Any]:
    """What is common to all ranks, and under `pieces` this rank's rectangles, which are views of the state itself.

    Args:
        network: the network's sharded state, with the parameters themselves as data.
    """
    pieces = sharded_pieces(optimizer, network, lambda weights: {"param": weights.values, **weights.state})
    return {**common_state(optimizer), "pieces": pieces}


def sharded_pieces(
    optimizer: ChainedOptimizer, network: dict[str, Any], state_of: Callable[[MainWeights], dict[str, torch.Tensor]]
) -> dict[str, ShardedTensor]:
    """Return this rank's rectangles of what is kept for the weights that it updates, by name and place; they are views.

    Args:
        network: the network's sharded state, with the parameters themselves as data.
        state_of: tensors of the form of the weights' values, by name.
    """
    described = {id(described.data): described for described in _tensors_and_factories(network)}
    is_only_copy = optimizer.config.use_distributed_optimizer
    pieces = {}
    for weights in main_weights(optimizer):
        start, state = weights.start, state_of(weights)
        stop = start + len(weights.values)
        for whole, first, last, offset in _overlaps(described[id(weights.parameter)], start, stop):
            for name, values in state.items():
                for place, size in rectangles(whole.data.shape, first, last):
                    begin = offset + _flat(place, whole.data.shape) - first
                    piece = values[begin : begin + math.prod(size)]
                    key = f"{_PREFIX}.{name}.{whole.key}"
                    pieces[f"{key}@{_global_offset(whole, place)}"] = _piece(
                        key, whole, place, size, piece, is_only_copy
                    )
    return pieces


def restore_optimizer(optimizer: ChainedOptimizer, network: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Take over what was loaded into the form of `sharded_optimizer`; the recipe's options stay."""
    load_common_state(optimizer, loaded)
    targets = sharded_optimizer(optimizer, network)["pieces"]
    with torch.no_grad():
        for name, target in targets.items():
            target.data.copy_(loaded["pieces"][name])


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Rectangle]:
    """Cut the range [start, stop) of a flattened tensor into rectangles of it, each contiguous, in order.

    Args:
        shape: of the tensor, row-major.

    Yields:
        Offsets and sizes, one number for each dimension.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape)
        return
    row = math.prod(shape[1:])
    first_whole, last_whole = -(-start // row), stop // row
    if first_whole > last_whole:
        yield from _in_row(shape, start // row, start, stop)
        return
    yield from _in_row(shape, first_whole - 1, start, first_whole * row)
    if first_whole < last_whole:
        yield (first_whole, *(0,) * (len(shape) - 1)), (last_whole - first_whole, *shape[1:])
    yield from _in_row(shape, last_whole, last_whole * row, stop)


def _in_row(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Rectangle]:
    row = math.prod(shape[1:])
    for place, size in rectangles(shape[1:], start - index * row, stop - index * row):
        yield (index, *place), (1, *size)


def _tensors_and_factories(network: dict[str, Any]) -> Iterator[ShardedTensor | ShardedTensorFactory]:
    for value in nested_values(network):
        if isinstance(value, (ShardedTensor, ShardedTensorFactory)):
            yield value


def _overlaps(
    described: ShardedTensor | ShardedTensorFactory, start: int, stop: int
) -> Iterator[tuple[ShardedTensor, int, int, int]]:
    """The sharded tensors that a range of a flattened parameter touches.

    Usually one; a factory, as megatron-core has for the gate and the up projection in one matrix, makes several of
    one parameter.

    Yields:
        The sharded tensor, the range in it, and where that range starts in the parameter's own range.
    """
    if isinstance(described, ShardedTensor):
        yield described, start, stop, 0
        return
    # Without storage of its own a view still shows where in the parameter it starts.
    shape_only = torch.empty(described.data.shape, dtype=described.data.dtype, device="meta")
    parts = described.build_fn(described.key, shape_only, described.replica_id, None)
    for part in nested_values(parts if isinstance(parts, (dict, list)) else [parts]):
        if not part.data.is_contiguous():
            # Nothing that a user can do: megatron-core 0.16 cuts such parameters by rows, and another version may not.
            raise RuntimeError(f"{part.key}: megatron-core describes no contiguous part of its parameter")
        begin = part.data.storage_offset()
        first, last = max(start, begin), min(stop, begin + part.data.numel())
        if first < last:
            yield part, first - begin, last - begin, first - start


def _flat(place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    position = 0
    for index, length in zip(place, shape, strict=True):
        position = position * length + index
    return position


def _global_offset(whole: ShardedTensor, place: tuple[int, ...]) -> tuple[int, ...]:
    prepended = whole.prepend_axis_num
    inner = tuple(a + b for a, b in zip(whole.global_offset[prepended:], place, strict=True))
    return (*whole.global_offset[:prepended], *inner)


def _piece(
    key: str,
    whole: ShardedTensor,
    place: tuple[int, ...],
    size: tuple[int, ...],
    values: torch.Tensor,
    is_only_copy: bool,
) -> ShardedTensor:
    shape = (*(1,) * whole.prepend_axis_num, *size)
    # A tuple ends in the data-parallel rank. Where exactly one of them holds a piece, a number takes its place: 0 if it
    # is to be written here.
    replica: Any = int(any(whole.replica_id[:-1])) if is_only_copy else whole.replica_id  # type: ignore[index]
    return ShardedTensor(
        key=key,
        data=values.view(shape),
        dtype=values.dtype,
        local_shape=shape,
        global_shape=whole.global_shape,
        global_offset=_global_offset(whole, place),
        axis_fragmentations=None,
        replica_id=replica,
    )
