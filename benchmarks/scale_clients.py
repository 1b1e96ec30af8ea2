"""Simulated clients of the job's store for `benchmarks.scale`: the watchdog and the preflight check."""

from __future__ import annotations

import socket
import timeit
from collections.abc import Sequence
from functools import partial

# Seconds that a call takes its client.
LATENCY = 0.2e-3


class SimulatedStore:
    """What the project uses of torch's stores, for many simulated clients: it counts, and answers at once.

    Attributes:
        calls: of all clients; on a real network each takes its client a fraction of a millisecond.
        keys: that these calls named.
    """

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.calls = self.keys = 0

    def _count(self, keys: int) -> None:
        self.calls, self.keys = self.calls + 1, self.keys + keys

    def set(self, key: str, value: str | bytes) -> None:
        self._count(1)
        self.content[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        self._count(1)
        return self.content[key]

    def check(self, keys: Sequence[str]) -> bool:
        self._count(len(keys))
        return all(key in self.content for key in keys)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        self._count(len(keys))
        return [self.content[key] for key in keys]

    def add(self, key: str, number: int) -> int:
        self._count(1)
        now = int(self.content.get(key, b"0")) + number
        self.content[key] = str(now).encode()
        return now

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        self._count(1)
        if self.content.get(key, b"").decode() == expected:
            self.content[key] = wanted.encode()
        return self.content.get(key, expected.encode())


class Costs:
    """What a call and a key cost the server of torch's store, in seconds, as measured here."""

    def __init__(self) -> None:
        import torch

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        keys = [f"kaiyuan/alive/{number}" for number in range(8192)]
        for key in keys:
            store.set(key, "x" * 300)
        # The least of many: what others do on this machine is not the store's cost.
        clock = partial(timeit.repeat, number=1, repeat=30)
        self.call = min(clock(lambda: [store.check(keys[:1]) for _ in range(200)])) / 200
        self.key = min(clock(lambda: store.multi_get(keys[:1024]))) / 1024

    def seconds(self, calls: int, keys: int) -> float:
        """The server's time for calls and keys of all clients."""
        return calls * self.call + keys * self.key


def look(ranks: int) -> tuple[int, int, float, str]:
    """A job of `ranks` that hangs in its last rank, all of them searching for it, a step of each in turn.

    Returns:
        Calls and keys of all ranks until the last one has the verdict, the seconds that the calls of the rank that made
        the most took it, and the verdict.
    """
    from megatron_kaiyuan.cluster.search import Search, report
    from megatron_kaiyuan.cluster.verdict import Alive, Verdict

    store = SimulatedStore()
    searches = [Search(store, rank, ranks, 7, "node0:29500") for rank in range(ranks)]  # type: ignore[arg-type]
    own = [0] * ranks
    verdicts: dict[int, Verdict] = {}
    for period in range(20):
        counted = store.calls, store.keys
        for rank in range(ranks):
            waiting = rank != ranks - 1
            report(store, rank, Alive(period, 7, waiting, "file.py:7 (read)", f"node{rank // 8}", rank, "1"))  # type: ignore[arg-type]
        # What every rank reports once a period, hanging or not, is not part of the search.
        store.calls, store.keys = counted
        for rank, search in enumerate(searches):
            before = store.calls
            if rank not in verdicts and (verdict := search.step()) is not None:
                verdicts[rank] = verdict
            own[rank] += store.calls - before
    (message,) = {one.message for one in verdicts.values()}
    assert len(verdicts) == ranks
    return store.calls, store.keys, max(own) * LATENCY, message


def absentees(ranks: int, absent: int) -> tuple[int, int]:
    """Calls and keys of all ranks that look for those which have not come."""
    from megatron_kaiyuan.cluster import start_check

    store = SimulatedStore()
    for rank in range(ranks - absent):
        store.content[f"kaiyuan/here/{rank}"] = b"{}"
    assert start_check._absent(store, ranks) == list(range(ranks - absent, ranks))  # type: ignore[arg-type]
    # The others wait for a verdict.
    searchers = start_check._MOST_SEARCHERS
    return searchers * store.calls, searchers * store.keys
