"""A rank of test_hccl.py: each collective on npu tensors over HCCL and on host tensors over gloo."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401 - platform npu, without the project

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
OPERATIONS = (dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MAX, dist.ReduceOp.MIN)
TYPES = [torch.float32, torch.float16, torch.int8, torch.int32, torch.int64]
# More than is exchanged at a time.
LONG = 200_001


def drawn(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size).mul(4).to(dtype)


def same(call: Callable[..., Any], *inputs: torch.Tensor) -> None:
    """A call changes its tensors in the same way on both."""
    npu, host = [part.npu() for part in inputs], [part.clone() for part in inputs]  # type: ignore[attr-defined]
    call(*npu, group=None)
    call(*host, group=gloo)
    for one, other in zip(npu, host, strict=True):
        assert torch.equal(one.cpu(), other), (one.cpu(), other)


def reductions() -> None:
    for dtype in TYPES:
        for operation in OPERATIONS:
            # gloo sums FP16 in another order on three ranks: whole numbers, which no order rounds.
            whole = drawn(37).round().to(dtype)
            same(lambda t, group, op=operation: dist.all_reduce(t, op, group=group), whole)
    same(lambda t, group: dist.all_reduce(t, group=group), drawn(LONG).round())
    same(
        lambda t, o, group: dist.reduce_scatter_tensor(o, t, group=group),
        drawn(LONG * WORLD).round(),
        torch.zeros(LONG),
    )
    given = drawn(11).round()
    npu, host = given.npu(), given.clone()  # type: ignore[attr-defined]
    dist.reduce(npu, 1)
    dist.reduce(host, 1, group=gloo)
    assert RANK != 1 or torch.equal(npu.cpu(), host)
    # Megatron Core's distributed optimizer reduces into a share of the same buffer.
    buffer = drawn(LONG * WORLD).round()
    expected = buffer.clone()
    dist.all_reduce(expected, group=gloo)
    npu = buffer.npu()  # type: ignore[attr-defined]
    share = npu[RANK * LONG : (RANK + 1) * LONG]
    dist.reduce_scatter_tensor(share, npu)
    assert torch.equal(share.cpu(), expected[RANK * LONG : (RANK + 1) * LONG])


def copies() -> None:
    for dtype in (torch.float32, torch.uint8, torch.int64, torch.bool):
        given = drawn(50, dtype)
        same(lambda t, group: dist.broadcast(t, 1, group=group), given)
        same(lambda t, *o, group: dist.all_gather(list(o), t, group=group), given, *[given.clone()] * WORLD)
        same(lambda t, o, group: dist.all_gather_into_tensor(o, t, group=group), given, given.repeat(WORLD))
    same(
        lambda o, *t, group: dist.scatter(o, list(t) if RANK == 1 else None, 1, group=group),
        *[drawn(9) for _ in range(1 + WORLD)],
    )
    same(lambda t, o, group: dist.all_to_all_single(o, t, group=group), drawn(5 * WORLD), drawn(5 * WORLD))
    objects = [None] * WORLD
    dist.all_gather_object(objects, {"rank": RANK, "padding": "x" * (1 + 1000 * RANK)})
    assert [content["rank"] for content in objects] == list(range(WORLD))  # type: ignore[index]


def messages() -> None:
    """In a ring, batched; then from rank to rank, and in a group of its own."""
    following, previous = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    for size in (3, LONG):
        sent, received = torch.full((size,), float(RANK)).npu(), torch.zeros(size).npu()  # type: ignore[attr-defined]
        pairs = [dist.P2POp(dist.isend, sent, following), dist.P2POp(dist.irecv, received, previous)]
        for work in dist.batch_isend_irecv(pairs):
            work.wait()
        assert torch.equal(received.cpu(), torch.full((size,), float(previous)))
    pair = dist.new_group([0, WORLD - 1])
    if RANK == 0:
        dist.send(torch.arange(5.0).npu(), WORLD - 1, group=pair)  # type: ignore[attr-defined]
        # The task queue ends with its process.
        torch.npu.synchronize()  # type: ignore[attr-defined]
    elif RANK == WORLD - 1:
        received = torch.zeros(5).npu()  # type: ignore[attr-defined]
        dist.recv(received, 0, group=pair)
        assert torch.equal(received.cpu(), torch.arange(5.0))


def lost() -> None:
    """The last rank does not come: the others fail."""
    dist.all_reduce(drawn(4).npu())  # type: ignore[attr-defined]
    if RANK == WORLD - 1:
        return
    try:
        dist.all_reduce(drawn(4).npu())  # type: ignore[attr-defined]
    except RuntimeError as error:
        print("lost:", str(error).splitlines()[0])


torch.npu.set_device(RANK)  # type: ignore[attr-defined]
if torch.npu.is_bf16_supported():  # type: ignore[attr-defined]
    TYPES.append(torch.bfloat16)
dist.init_process_group("hccl")
gloo = dist.new_group(backend="gloo")
torch.manual_seed(RANK)
for name in sys.argv[1:]:
    globals()[name]()
print("done", RANK)
