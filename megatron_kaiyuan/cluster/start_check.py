"""Who is there, and are all about to run the same? Asked through the launcher's store, before any collective.

Every rank writes what it is about to run. Rank 0 compares as soon as all have written, and its verdict is everybody's;
a rank that has waited too long before gives the verdict that ranks are missing. So all ranks end alike, one of them
says why, and no rank waits in a collective for a rank that never comes or that takes other steps.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from megatron_kaiyuan.cluster.discover import Rank
from megatron_kaiyuan.cluster.loopback import hold_store, is_loopback
from megatron_kaiyuan.cluster.many_objects import collector_paused
from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.cluster.store_keys import absent, chunks, wait_for
from megatron_kaiyuan.cluster.waiting import Waiting, waiting
from megatron_kaiyuan.errors import UserError

Facts = Mapping[str, str]

_HERE, _JUDGE, _VERDICT, _SEARCHERS = "kaiyuan/here/", "kaiyuan/judge", "kaiyuan/verdict", "kaiyuan/searchers"
# Ranks that look for missing ones: more than one, as one of them may end meanwhile.
_MOST_SEARCHERS = 3
# How often rank 0 looks for another rank's verdict.
_LOOK_SECONDS = 1.0
# What rank 0 may take to compare what it has heard.
_COMPARE_SECONDS = 60.0
_DIFFERENCES, _HOSTS = 4, 3


class RankMissing(Exception):
    """Ranks of this job never came. No mistake in the recipe: the same command may succeed.

    Attributes:
        speaker: this rank is the one to print it.
    """

    def __init__(self, message: str, speaker: bool):
        super().__init__(message)
        self.speaker = speaker


@dataclass(frozen=True)
class ArrivedRank:
    """A rank that has come: its host, and what it is about to run."""

    host: str
    facts: Facts


def holds_store(who: Rank) -> bool:
    """Return whether this process is to hold the job's store: rank 0, where torchrun's agent does not."""
    return who.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def open_store(who: Rank, timeout: timedelta) -> torch.distributed.TCPStore:
    """The job's key-value store: torchrun's where its agent holds one, else one that rank 0 holds.

    Raises:
        RankMissing: rank 0 cannot be reached.
        UserError: rank 0 cannot listen at its port.
    """
    holder = holds_store(who)
    try:
        if holder and is_loopback(who.master_address):
            return hold_store(who.master_port, who.world_size, timeout)
        # One line of each node is enough.
        speaks = who.local_rank == 0 and not holder
        with waiting(f"rank 0 at {who.master_address}:{who.master_port}") if speaks else nullcontext():
            # Not waiting for the others: torch would say how many have come in time, but not which.
            return torch.distributed.TCPStore(
                who.master_address, who.master_port, who.world_size, holder, timeout, wait_for_workers=False
            )
    except (torch.distributed.DistError, OSError) as error:
        reason = str(error).splitlines()[0]
        if holder:
            raise UserError(
                f"rank 0 cannot listen at port {who.master_port} ({reason}); set MASTER_PORT to a free one"
            ) from error
        at = f"{who.master_address}:{who.master_port}"
        raise RankMissing(
            f"rank {who.rank} on {socket.gethostname()} did not reach rank 0 at {at} within {_in_words(timeout)} "
            f"({reason}); is that address right, and open to this host?",
            speaker=True,
        ) from error


def start_check(store: torch.distributed.Store, who: Rank, facts: Facts, timeout: timedelta) -> None:
    """Wait until every rank has come, and compare what they bring. Called once by each rank.

    Args:
        facts: what has to be the same everywhere, by name.

    Raises:
        RankMissing: ranks did not come within `timeout` of the first rank's call.
        UserError: facts differ; the message names them, the ranks and both values.
    """
    store.set(f"{_HERE}{who.rank}", json.dumps({"host": socket.gethostname(), "facts": dict(facts)}))
    deadline = time.monotonic() + timeout.total_seconds()
    if who.rank == 0:
        _judge(store, who, deadline)
    elif not wait_for(store, [_VERDICT], deadline, who.world_size, _waiting_for_rank_0(who)):
        _judge_in_its_place(store, who)
    verdict = json.loads(store.get(_VERDICT))
    if missing := verdict.get("missing"):
        raise RankMissing(
            f"{ranks_in_words(missing)} of {who.world_size} did not come within {_in_words(timeout)}; their logs, or "
            "their launcher's, may say why",
            speaker=verdict["by"] == who.rank,
        )
    if different := verdict.get("different"):
        raise UserError(
            f"the ranks are about to run different things: {different}; give all of them the same code, libraries, "
            "recipe and data",
            every_rank=True,
        )


@collector_paused()
def _judge(store: torch.distributed.Store, who: Rank, deadline: float) -> None:
    """Rank 0's part, unless another rank has lost its patience before."""
    keys = [f"{_HERE}{rank}" for rank in range(who.world_size)]
    line = Waiting(lambda: f"{ranks_in_words(_absent(store, who.world_size) or [0])} of {who.world_size} to come")
    for some in chunks(keys):
        while not wait_for(store, some, min(deadline, time.monotonic() + _LOOK_SECONDS)):
            line.look()
            if store.check([_VERDICT]):
                return
            if time.monotonic() >= deadline and (missing := _absent(store, who.world_size)):
                _give(store, who, {"missing": missing})
                return
    present = [ArrivedRank(**json.loads(text)) for some in chunks(keys) for text in store.multi_get(list(some))]
    _give(store, who, {"different": differences(present)})


def _judge_in_its_place(store: torch.distributed.Store, who: Rank) -> None:
    """Another rank's part when the time is over: the first that ask look for the missing ranks, the others wait."""
    missing: list[int] = []
    patience = _COMPARE_SECONDS
    if store.add(_SEARCHERS, 1) <= _MOST_SEARCHERS:
        missing = _absent(store, who.world_size)
    else:
        # Longer than those who look, and wait themselves if rank 0 has only come late.
        patience *= 2
    if missing or not wait_for(store, [_VERDICT], time.monotonic() + patience, who.world_size):
        _give(store, who, {"missing": missing or _absent(store, who.world_size) or [0]})


def _give(store: torch.distributed.Store, who: Rank, verdict: dict[str, Any]) -> None:
    """Say it for all, unless another rank has done so."""
    if store.compare_set(_JUDGE, "", str(who.rank)) == str(who.rank).encode():
        store.set(_VERDICT, json.dumps({**verdict, "by": who.rank}))


def _waiting_for_rank_0(who: Rank) -> Waiting | None:
    """The line of the second rank alone: rank 0 says which of the others it waits for."""
    return (
        Waiting(f"rank 0 of {who.world_size}, which compares what all ranks are about to run")
        if who.rank == 1
        else None
    )


def _absent(store: torch.distributed.Store, world_size: int) -> list[int]:
    keys = absent(store, [f"{_HERE}{rank}" for rank in range(world_size)])
    return [int(key[len(_HERE) :]) for key in keys]


def differences(present: Sequence[ArrivedRank]) -> str:
    """Which facts differ, with the ranks that hold each value, the fewest first; empty where none does.

    Args:
        present: by rank.
    """
    found = []
    for name in dict.fromkeys(name for one in present for name in one.facts):
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, one in enumerate(present):
            holders[one.facts.get(name, "not known")].append(rank)
        if len(holders) > 1:
            values = sorted(holders.items(), key=lambda item: len(item[1]))
            said = [f"{value} on {ranks_in_words(ranks)}{_hosts(present, ranks)}" for value, ranks in values]
            found.append(f"{name} is {', '.join(said)}")
    more = f"; and {len(found) - _DIFFERENCES} more" if len(found) > _DIFFERENCES else ""
    return "; ".join(found[:_DIFFERENCES]) + more


def _hosts(present: Sequence[ArrivedRank], ranks: Sequence[int]) -> str:
    hosts = list(dict.fromkeys(present[rank].host for rank in ranks))
    return f" ({', '.join(hosts[:_HOSTS])}{', ...' if len(hosts) > _HOSTS else ''})"


def _in_words(timeout: timedelta) -> str:
    seconds = timeout.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds > 60 else f"{seconds:g} seconds"
