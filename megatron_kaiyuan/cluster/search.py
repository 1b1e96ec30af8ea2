"""The search for the ranks that hang, through the job's store: a few ranks look at all, the others wait for them.

If every rank looked at every other one, a job of 8,192 ranks would read 268 million keys, and the store would need
minutes: ranks would seem silent whose reports only stand in its queue. So the first ranks that ask take a ticket and
look twice, some periods apart; the first of them to be done puts its verdict into the store. Should all of them end
before that, the next ranks take tickets.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import torch

from megatron_kaiyuan.cluster.store_keys import read_present
from megatron_kaiyuan.cluster.verdict import Alive, Verdict, decoded, judge, silent_between

# More than one, as a rank may end between its looks.
LOOKERS = 3
# Steps from a ticket to the second look, and to the next round of tickets.
_SECOND_LOOK, _NEXT_ROUND = 4, 6
_ALIVE, _TICKETS, _VERDICT = "kaiyuan/alive/", "kaiyuan/tickets/", "kaiyuan/hanging"


def report(store: torch.distributed.Store, rank: int, said: Alive) -> None:
    """Write what a rank reports of itself."""
    store.set(f"{_ALIVE}{rank}", json.dumps(asdict(said)))


def look(store: torch.distributed.Store, world: int) -> dict[int, Alive]:
    """Return the last report of each rank that has ever reported."""
    prefix = len(_ALIVE)
    said = read_present(store, [f"{_ALIVE}{rank}" for rank in range(world)])
    return {int(key[prefix:]): Alive(**json.loads(text)) for key, text in said.items()}


class Search:
    """One rank's part in a search.

    Args:
        beats: of this rank's main thread: those who hang in one place have the same number, and share their tickets.
        master: where the store listens, for the message.
    """

    def __init__(self, store: torch.distributed.Store, rank: int, world: int, beats: int, master: str):
        self._store, self._rank, self._world, self._master = store, rank, world, master
        self._tickets = f"{_TICKETS}{beats}/"
        self._round, self._steps = 0, 0
        self._before: dict[int, Alive] | None = None

    def step(self) -> Verdict | None:
        """Do what is due, once a period; return the verdict when there is one."""
        if self._store.check([_VERDICT]):
            return decoded(self._store.get(_VERDICT))
        self._steps += 1
        if self._steps == 1:
            ticket = self._store.add(f"{self._tickets}{self._round}", 1)
            self._before = look(self._store, self._world) if ticket <= LOOKERS else None
        elif self._steps >= _SECOND_LOOK and self._before is not None:
            return self._give(self._before)
        elif self._steps >= _NEXT_ROUND:
            self._round, self._steps = self._round + 1, 0
        return None

    def _give(self, before: dict[int, Alive]) -> Verdict:
        """Look again, and put the verdict into the store unless there is one, which counts then."""
        now = look(self._store, self._world)
        others = (rank for rank in range(self._world) if rank != self._rank)
        verdict = judge(now, silent_between(before, now, others), self._master)
        mine = replace(verdict, by=self._rank).encoded()
        return decoded(self._store.compare_set(_VERDICT, "", mine))
