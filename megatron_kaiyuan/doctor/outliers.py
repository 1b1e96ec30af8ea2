"""Ranks and links that are much slower than the others: products, copies from the host, and messages to two partners.

Each rank exchanges messages with partners on its node, and with the same rank of other nodes, each pair at once. In
round r of a tournament, place i meets place r - i modulo the number of places, so that each one has two partners in
three rounds. A bad link slows its partner too; what counts is the best partner, and a bad place has no good one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.precisions import DTYPES

# A rank is an outlier below this share of the median of all: clocks and neighbours make less of a difference.
_SHARE = 0.5
# With fewer, the odd one cannot be distinguished from the others.
_FEWEST = 3
_ROUNDS, _TRIES = 3, 4
_MIB = 1 << 20
_UNITS = {"products": "TFLOP/s", "copies to the device": "GB/s", "messages on the node": "GB/s"}
_UNITS |= {"messages between nodes": "GB/s"}


def examine_outliers(found: Examination, platform: Platform, hosts: Sequence[str]) -> None:
    """Measure this rank and its links, and compare all ranks. Collective.

    Args:
        hosts: by rank.
    """
    rank = distributed.get_rank()
    here = [one for one, host in enumerate(hosts) if host == hosts[rank]]
    nodes = list(dict.fromkeys(hosts))
    peers = _same_place(hosts, here.index(rank), nodes)
    measured = {}
    for name, measure in (
        ("products", lambda: _products(platform)),
        ("copies to the device", lambda: _copies(platform)),
        ("messages on the node", lambda: _messages(here, platform)),
        ("messages between nodes", lambda: _messages(peers, platform)),
    ):
        found.doing = name
        measured[name] = measure()
    everyone: list[dict[str, float]] = [{}] * len(hosts)
    distributed.all_gather_object(everyone, measured)
    found.facts["speeds"] = measured
    for name, unit in _UNITS.items():
        values = [one[name] for one in everyone]
        if rank in (slow := outliers(values)):
            found.problem(
                f"speed: {name} at {values[rank]:.3g} {unit} on {hosts[rank]}, rank {rank}; the median of all ranks is "
                f"{statistics.median(value for value in values if value):.3g}",
                of_node=True,
            )
        found.facts.setdefault("slow_ranks", {})[name] = slow


def outliers(values: Sequence[float]) -> list[int]:
    """Return the places of values that are far below the median; 0 stands for a place without one."""
    known = [value for value in values if value]
    if len(known) < _FEWEST:
        return []
    least = _SHARE * statistics.median(known)
    return [place for place, value in enumerate(values) if value and value < least]


def partner(place: int, places: int, turn: int) -> int | None:
    """Return whom a place meets in a turn; None: it rests."""
    other = (turn - place) % places
    return None if other == place else other


def _same_place(hosts: Sequence[str], place: int, nodes: Sequence[str]) -> list[int]:
    """Return the ranks at one place of each node, where all nodes have that place."""
    ranks: dict[str, list[int]] = {node: [] for node in nodes}
    for rank, host in enumerate(hosts):
        ranks[host].append(rank)
    return [one[place] for one in ranks.values()] if all(len(one) > place for one in ranks.values()) else []


def _products(platform: Platform) -> float:
    """Return 1e12 FLOP/s of square products, the best of some."""
    size = 512 if platform.name == "cpu" else 8192
    dtype = torch.float32 if platform.name == "cpu" else DTYPES[platform.precisions[-1]]
    one = torch.ones(size, size, dtype=dtype, device=platform.device)
    return 2 * size**3 / _quickest(lambda: one @ one, platform) / 1e12


def _copies(platform: Platform) -> float:
    """Return GB/s from the host's memory to the device."""
    size = (16 if platform.name == "cpu" else 256) * _MIB
    source = torch.ones(size, dtype=torch.uint8)
    source = source if platform.name == "cpu" else source.pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=platform.device)
    return size / _quickest(lambda: target.copy_(source), platform) / 1e9


def _messages(ranks: Sequence[int], platform: Platform) -> float:
    """Return GB/s to the best partner among `ranks`, 0 without one. Collective of all ranks, also of others."""
    rank, best = distributed.get_rank(), 0.0
    size = (4 if platform.name == "cpu" else 64) * _MIB
    mine, received = (torch.zeros(size, dtype=torch.uint8, device=platform.device) for _ in range(2))
    for turn in range(_ROUNDS):
        # All pairs at once, and each turn after the one before.
        distributed.barrier()
        if rank not in ranks or (place := partner(ranks.index(rank), len(ranks), turn)) is None:
            continue
        other = ranks[place]

        def exchange(other: int = other) -> None:
            ends = [
                distributed.P2POp(distributed.isend, mine, other),
                distributed.P2POp(distributed.irecv, received, other),
            ]
            for work in distributed.batch_isend_irecv(ends):
                work.wait()

        best = max(best, size / _quickest(exchange, platform) / 1e9)
    return best


def _quickest(call: Callable[[], Any], platform: Platform) -> float:
    """Return the seconds of the quickest call of some, after one that warms up."""
    seconds = []
    for _ in range(_TRIES + 1):
        platform.synchronize()
        began = time.perf_counter()
        call()
        platform.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
