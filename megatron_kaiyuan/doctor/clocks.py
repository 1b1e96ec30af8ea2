"""How far the clocks of the ranks are apart, by Cristian's method (Distributed Computing 3, 1989).

Rank 0 asks each rank for its time. The answer belongs to the middle of the time that the question took, give or take
half of it; the quickest of several answers is the most exact one.
"""

from __future__ import annotations

import time

import torch
from torch import distributed

from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.platform import Platform

_QUESTIONS = 10
# More ranks than this are not asked one by one, but the first one of each host.
_MOST_RANKS = 64
# Clocks kept by NTP are some milliseconds apart. Logs in the wrong order and `make` on shared folders begin here.
_LARGEST_SKEW_SECONDS = 1.0


def examine_clocks(found: Examination, platform: Platform, hosts: list[str]) -> None:
    """Ask every rank for its time. Collective; the facts are rank 0's.

    Args:
        hosts: by rank.
    """
    asked = (
        list(range(len(hosts))) if len(hosts) <= _MOST_RANKS else [hosts.index(host) for host in dict.fromkeys(hosts)]
    )
    offsets: dict[int, tuple[float, float]] = {}
    for rank in asked[1:]:
        if distributed.get_rank() == 0:
            offsets[rank] = min((_ask(rank, platform) for _ in range(_QUESTIONS)), key=lambda answer: answer[1])
        elif distributed.get_rank() == rank:
            for _ in range(_QUESTIONS):
                _answer(platform)
    if distributed.get_rank() != 0:
        return
    furthest = max(offsets, key=lambda rank: abs(offsets[rank][0]))
    found.facts["clocks"] = {
        "furthest_rank": furthest,
        "seconds_ahead_of_rank_0": round(offsets[furthest][0], 6),
        "uncertainty_seconds": round(offsets[furthest][1], 6),
    }
    for rank, (ahead, uncertainty) in offsets.items():
        if abs(ahead) - uncertainty > _LARGEST_SKEW_SECONDS:
            where = "ahead of" if ahead > 0 else "behind"
            found.problem(
                f"clocks: rank {rank} on {hosts[rank]} is {abs(ahead):.1f} seconds {where} rank 0 on {hosts[0]}; "
                "synchronise them (chronyd or ntpd)"
            )


def _ask(rank: int, platform: Platform) -> tuple[float, float]:
    """How many seconds a rank's clock is ahead of this one, and how uncertain that is."""
    stamp = torch.zeros(1, dtype=torch.int64, device=platform.device)
    asked = time.time_ns()
    distributed.send(stamp, rank)
    distributed.recv(stamp, rank)
    theirs = int(stamp.item())
    heard = time.time_ns()
    return (theirs - (asked + heard) / 2) / 1e9, (heard - asked) / 2e9


def _answer(platform: Platform) -> None:
    stamp = torch.zeros(1, dtype=torch.int64, device=platform.device)
    distributed.recv(stamp, 0)
    platform.synchronize()
    distributed.send(torch.tensor([time.time_ns()], dtype=torch.int64, device=platform.device), 0)
