"""Every exchange between ranks that training makes, once, in the types that it makes it in: is the answer right?

`collectives.py` measures how fast the large ones are, in FP32 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from megatron_kaiyuan.doctor.examination import Examination, in_one_line
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.precisions import DTYPES

# What gives the answer of an exchange of elements of one type on one device, and the right answer.
Exchange = Callable[[torch.dtype, torch.device], tuple[torch.Tensor, torch.Tensor]]
_COUNT = 96
# A connection takes NCCL up to a tenth of a second, and each rank of a line waits for the one before.
_LINE = 16


def examine_exchanges(found: Examination, platform: Platform) -> list[str]:
    """Try every exchange. Collective.

    Returns:
        The names of those that were right on this rank.
    """
    right = []
    for name, exchange in exchanges(platform):
        found.doing = name
        try:
            got, expected = exchange()
        except Exception as error:
            found.problem(f"collectives: {name} fails ({in_one_line(error)}): training could not exchange it")
            continue
        if torch.equal(got.cpu(), expected):
            right.append(name)
        else:
            found.problem(f"collectives: {name} gives wrong numbers on this rank: training would go astray")
    found.facts["exchanges"] = right
    return right


def exchanges(platform: Platform) -> Iterator[tuple[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]]:
    """Each with its name, as `all_reduce of int64`; what training uses it for stands beside it."""
    half = [DTYPES[name] for name in platform.precisions if name != "fp32"]
    table: tuple[tuple[str, Exchange, list[torch.dtype]], ...] = (
        # Gradients, losses and norms; votes and counts; half precision between tensor-parallel ranks.
        ("all_reduce", _sum, [torch.float32, torch.int64, *half]),
        # Overflow flags and gradient norms by their largest.
        ("all_reduce of the largest", _largest, [torch.float32]),
        # Sharded updates of weights; checksums and strings.
        ("all_gather", _gather, [torch.float32, torch.uint8, torch.int64, *half]),
        # Gradients of the distributed optimizer; sequence parallelism.
        ("reduce_scatter", _scatter, [torch.float32, *half]),
        # Weights at the start, batches within tensor-parallel groups.
        ("broadcast", _broadcast, [torch.float32, torch.int64, torch.uint8, *half]),
        # Between pipeline stages, one at a time and in a batch.
        ("send and receive", _send_in_turn, [torch.int64, *half]),
        ("batched send and receive", _ring, [torch.float32, *half]),
    )
    for name, exchange, dtypes in table:
        for dtype in dtypes:
            where = f"{name} of {str(dtype).removeprefix('torch.')}"
            yield where, lambda run=exchange, kind=dtype: run(kind, platform.device)  # type: ignore[misc]
    # Messages of errors; plans of checkpoints; what rank 0 decides, for all and for each rank.
    yield "all_gather of objects", _gather_objects
    yield "gather of objects", _objects_to_first
    yield "broadcast of objects", _broadcast_objects
    yield "scatter of objects", _scatter_objects


def _place() -> tuple[int, int]:
    return distributed.get_rank(), distributed.get_world_size()


def _mine(rank: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Small whole numbers, other ones on each rank, which every type holds and adds without rounding."""
    return (torch.arange(_COUNT) % 7 + rank % 8).to(dtype).to(device)


def _of_all(ranks: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([_mine(rank, torch.float64, torch.device("cpu")) for rank in range(ranks)]).to(dtype)


def _sum(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    tensor = _mine(rank, dtype, device)
    distributed.all_reduce(tensor)
    return tensor, _of_all(ranks, torch.float64).sum(0).to(dtype)


def _largest(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    tensor = _mine(rank, dtype, device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor, _of_all(ranks, dtype).amax(0)


def _gather(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    everything = torch.zeros(ranks * _COUNT, dtype=dtype, device=device)
    distributed.all_gather_into_tensor(everything, _mine(rank, dtype, device))
    return everything, _of_all(ranks, dtype).flatten()


def _scatter(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    mine = torch.zeros(_COUNT, dtype=dtype, device=device)
    distributed.reduce_scatter_tensor(mine, _mine(rank, dtype, device).repeat(ranks))
    return mine, _of_all(ranks, torch.float64).sum(0).to(dtype)


def _broadcast(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    tensor = _mine(rank, dtype, device)
    distributed.broadcast(tensor, ranks - 1)
    return tensor, _of_all(ranks, dtype)[-1]


def _send_in_turn(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Down lines as in a pipeline: each rank waits for the one before it."""
    rank, ranks = _place()
    tensor = _mine(0, dtype, device)
    if rank % _LINE > 0:
        tensor.zero_()
        distributed.recv(tensor, rank - 1)
    if (rank + 1) % _LINE > 0 and rank < ranks - 1:
        distributed.send(tensor, rank + 1)
    return tensor, _of_all(1, dtype)[0]


def _ring(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    before, after = (rank - 1) % ranks, (rank + 1) % ranks
    received = torch.zeros(_COUNT, dtype=dtype, device=device)
    for work in distributed.batch_isend_irecv(
        [
            distributed.P2POp(distributed.isend, _mine(rank, dtype, device), after),
            distributed.P2POp(distributed.irecv, received, before),
        ]
    ):
        work.wait()
    return received, _of_all(ranks, dtype)[before]


def _gather_objects() -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    gathered: list[Any] = [None] * ranks
    distributed.all_gather_object(gathered, _object(rank))
    return _is(gathered, [_object(one) for one in range(ranks)])


def _objects_to_first() -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    gathered: list[Any] | None = [None] * ranks if rank == 0 else None
    distributed.gather_object(_object(rank), gathered)
    return _is(gathered, [_object(one) for one in range(ranks)] if rank == 0 else None)


def _broadcast_objects() -> tuple[torch.Tensor, torch.Tensor]:
    rank, _ = _place()
    received: list[Any] = [_object(rank)]
    distributed.broadcast_object_list(received, src=0)
    return _is(received, [_object(0)])


def _scatter_objects() -> tuple[torch.Tensor, torch.Tensor]:
    rank, ranks = _place()
    received: list[Any] = [None]
    distributed.scatter_object_list(received, [_object(one) for one in range(ranks)] if rank == 0 else None)
    return _is(received, [_object(rank)])


def _object(rank: int) -> dict[str, Any]:
    """Of another length on each rank."""
    return {"rank": rank, "text": "x" * rank}


def _is(got: Any, expected: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(got == expected), torch.tensor(True)
