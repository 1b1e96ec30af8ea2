"""Do collectives give the right answer between all ranks, and how fast?

Bandwidth is "bus bandwidth" as NVIDIA's nccl-tests define it: what a link has to carry whatever the number of ranks, so
that it can be compared with the hardware's figure. For S bytes, n ranks and t seconds: all-reduce 2 S (n-1) / (n t),
all-gather and reduce-scatter S (n-1) / (n t), broadcast and point to point S / t.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.platform import Platform

_MIB = 1 << 20
_SECONDS_EACH = 0.2
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Operation:
    """One collective on tensors of `count` elements a rank.

    Attributes:
        prepare: makes the call, and the check of what it left.
        factor: bus bytes of all ranks' bytes S, see above.
    """

    name: str
    prepare: Callable[[int, torch.device], tuple[Callable[[], Any], Callable[[], bool]]]
    factor: Callable[[int], float]


def examine_collectives(found: Examination, platform: Platform) -> None:
    """Time every operation at a small, a middle and a large size. Collective; facts are equal on every rank."""
    ranks = distributed.get_world_size()
    largest = 32 * _MIB if platform.name == "cpu" else 256 * _MIB
    rows = []
    for operation in OPERATIONS:
        row: dict[str, Any] = {"operation": operation.name}
        for size, wanted in (("latency_us", 4 * ranks), ("gb_per_s_1mib", _MIB), ("gb_per_s_large", largest)):
            found.doing = f"{operation.name} of {wanted:,} bytes"
            count = max(1, wanted // (4 * ranks))
            call, is_right = operation.prepare(count, platform.device)
            call()
            if not is_right():
                found.problem(f"collectives: {operation.name} of {wanted:,} bytes gives wrong numbers on this rank")
            seconds = _seconds(call, platform)
            moved = 4 * ranks * count * operation.factor(ranks)
            row[size] = round(seconds * 1e6, 1) if size == "latency_us" else round(moved / seconds / 1e9, 3)
        rows.append(row)
    found.facts["collectives"] = {
        "backend": platform.collective_backend,
        "ranks": ranks,
        "large_bytes": largest,
        "operations": rows,
    }


def _seconds(call: Callable[[], Any], platform: Platform) -> float:
    """Mean time of a call that has run once, on the slowest rank."""
    once = _slowest(_timed(call, 1, platform), platform)
    rounds = max(1, min(_MOST_ROUNDS, int(_SECONDS_EACH / once)))
    return _slowest(_timed(call, rounds, platform) / rounds, platform)


def _timed(call: Callable[[], Any], rounds: int, platform: Platform) -> float:
    distributed.barrier()
    platform.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        call()
    platform.synchronize()
    return time.perf_counter() - began


def _slowest(seconds: float, platform: Platform) -> float:
    value = torch.tensor([seconds], dtype=torch.float32, device=platform.device)
    distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return value.item()


def _all_reduce(count: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], bool]]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    data = torch.full((count * ranks,), float(rank + 1), device=device)
    total = float(ranks * (ranks + 1) // 2)
    return lambda: distributed.all_reduce(data), lambda: bool((data == total).all())


def _broadcast(count: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], bool]]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    data = torch.full((count * ranks,), float(rank + 1), device=device)
    return lambda: distributed.broadcast(data, 0), lambda: bool((data == 1.0).all())


def _all_gather(count: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], bool]]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    mine = torch.full((count,), float(rank + 1), device=device)
    everything = torch.zeros(count * ranks, device=device)
    expected = torch.arange(1.0, ranks + 1, device=device).repeat_interleave(count)
    return lambda: distributed.all_gather_into_tensor(everything, mine), lambda: torch.equal(everything, expected)


def _reduce_scatter(count: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], bool]]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    everything = torch.full((count * ranks,), float(rank + 1), device=device)
    mine = torch.zeros(count, device=device)
    total = float(ranks * (ranks + 1) // 2)
    return lambda: distributed.reduce_scatter_tensor(mine, everything), lambda: bool((mine == total).all())


def _ring(count: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], bool]]:
    """Every rank sends to the next one and receives from the one before, at once."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    before, after = (rank - 1) % ranks, (rank + 1) % ranks
    mine = torch.full((count * ranks,), float(rank + 1), device=device)
    received = torch.zeros(count * ranks, device=device)

    def exchange() -> None:
        pair = [
            distributed.P2POp(distributed.isend, mine, after),
            distributed.P2POp(distributed.irecv, received, before),
        ]
        for work in distributed.batch_isend_irecv(pair):
            work.wait()

    return exchange, lambda: bool((received == float(before + 1)).all())


OPERATIONS = (
    Operation("all_reduce", _all_reduce, lambda ranks: 2 * (ranks - 1) / ranks),
    Operation("all_gather", _all_gather, lambda ranks: (ranks - 1) / ranks),
    Operation("reduce_scatter", _reduce_scatter, lambda ranks: (ranks - 1) / ranks),
    Operation("broadcast", _broadcast, lambda ranks: 1.0),
    Operation("point_to_point", _ring, lambda ranks: 1.0),
)
