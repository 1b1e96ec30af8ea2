"""The watchdog's search and the preflight check among 8,192 simulated ranks: the right rank, and how many calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale_clients import SimulatedStore
from megatron_kaiyuan.cluster import Rank, start_check, store_keys
from megatron_kaiyuan.cluster.search import LOOKERS, Search, look, report
from megatron_kaiyuan.cluster.store_keys import absent, read_present
from megatron_kaiyuan.cluster.verdict import Alive, Verdict, decoded, judge

LATENCY_SECONDS = 0.2e-3


@dataclass
class Job:
    """A job that hangs: each period every rank reports, then takes a step of its search.

    Attributes:
        guilty: its main thread is not in a collective.
        stopped: by rank, the period from which on it neither reports nor searches.
        verdicts: by rank.
        own_calls: of each rank's search.
    """

    ranks: int
    guilty: int | None = None
    stopped: dict[int, int] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    own_calls: list[int] = field(default_factory=list)
    store: Any = field(default_factory=SimulatedStore)
    reports: int = 0

    def run(self, periods: int) -> None:
        searches = [Search(self.store, rank, self.ranks, 7, "node0:29500") for rank in range(self.ranks)]
        self.own_calls = [0] * self.ranks
        for period in range(periods):
            alive = [rank for rank in range(self.ranks) if period < self.stopped.get(rank, periods)]
            for rank in alive:
                said = Alive(period, 7, rank != self.guilty, "file.py:7 (read)", f"node{rank // 8}", rank, "1")
                report(self.store, rank, said)
            self.reports += len(alive)
            for rank in alive:
                before = self.store.calls
                if rank not in self.verdicts and (verdict := searches[rank].step()) is not None:
                    self.verdicts[rank] = verdict
                self.own_calls[rank] += self.store.calls - before


def test_the_right_one_of_8192_is_named_in_few_calls() -> None:
    job = Job(8192, guilty=5000)
    job.run(5)
    assert set(job.verdicts) == set(range(8192)) and len(set(map(repr, job.verdicts.values()))) == 1
    verdict = job.verdicts[0]
    assert verdict.message == "rank 5000 is at file.py:7 (read) (host node625, process 5000)"
    assert verdict.hosts == ["node625"] and verdict.by == 0
    # What each rank looks at in every other one would be a hundred million keys.
    assert (job.store.calls - job.reports) / 8192 < 10 and (job.store.keys - job.reports) / 8192 < 25
    assert max(job.own_calls) * LATENCY_SECONDS < 1


def test_a_stopped_rank_of_8192_is_named() -> None:
    job = Job(8192, stopped={4097: 1})
    job.run(5)
    assert len(job.verdicts) == 8191
    assert job.verdicts[0].message == "rank 4097 does not answer (host node512, process 4097)"
    assert job.verdicts[0].silent == [4097]


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_those_who_look_may_end_meanwhile(stopped_at: int) -> None:
    """The first node is lost between the two looks of all who took a ticket: others take the next ones."""
    job = Job(64, stopped=dict.fromkeys(range(8), stopped_at))
    job.run(12)
    assert set(job.verdicts) == set(range(8, 64))
    assert job.verdicts[8].silent == list(range(8)) and job.verdicts[8].hosts == ["node0"]
    assert job.verdicts[8].by in range(8, 8 + LOOKERS)


def test_a_verdict_is_read_as_it_was_given() -> None:
    said = {rank: Alive(1, 7, rank != 1, "file.py:7 (read)", "node", rank, "1") for rank in range(3)}
    verdict = judge(said, [], "node0:29500")
    assert decoded(verdict.encoded()) == verdict and verdict.accused == {1: said[1]}


def test_a_message_about_thousands_is_short() -> None:
    verdict = judge({0: Alive(1, 7, True, "x", "node", 1, "1")}, list(range(1, 5000)), "node0:29500")
    assert verdict.message.endswith("; and 4,983 more") and verdict.silent == list(range(1, 5000))


@given(st.sets(st.integers(0, 2999), max_size=40))
def test_absent_keys(missing: set[int]) -> None:
    store: Any = SimulatedStore()
    keys = [f"here/{rank}" for rank in range(3000)]
    store.content = {key: key.encode() for rank, key in enumerate(keys) if rank not in missing}
    assert absent(store, keys) == [keys[rank] for rank in sorted(missing)]
    assert store.calls <= 3 + 2 * 10 * len(missing)
    assert list(read_present(store, keys)) == list(store.content)


def test_most_ranks_are_absent() -> None:
    store: Any = SimulatedStore()
    report(store, 7, Alive(1, 7, True, "x", "node", 1, "1"))
    assert list(look(store, 8192)) == [7]
    assert store.calls < 2 * 8192 and store.calls * LATENCY_SECONDS < 4


class Clock:
    """Time that passes only when someone sleeps."""

    def __init__(self, then: Callable[[float], None] = lambda now: None):
        self.now, self._then = 0.0, then

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._then(self.now)


def who(rank: int, ranks: int) -> Rank:
    return Rank(rank, ranks, rank % 8, 8, "node0", 29500, "torchrun")


def test_preflight_of_8192_ranks_of_which_a_node_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SimulatedStore()
    clock = Clock()
    monkeypatch.setattr(start_check, "time", clock)
    monkeypatch.setattr(store_keys, "time", clock)
    for rank in range(8192 - 8):
        store.set(f"kaiyuan/here/{rank}", '{"host": "node", "facts": {}}')
    said = []
    for rank in range(1, 8192 - 8):
        before = store.calls
        with pytest.raises(start_check.RankMissing, match=r"^ranks 8184-8191 of 8192 did not come") as caught:
            start_check.start_check(store, who(rank, 8192), {}, timedelta(seconds=5))
        said.append((store.calls - before, caught.value.speaker))
    assert sum(speaker for _, speaker in said) == 1
    # The first one waits out the time, and looks; the others read its verdict.
    assert said[0][0] < 100 and max(calls for calls, _ in said[1:]) < 5


def test_preflight_of_8192_ranks_that_all_come(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SimulatedStore()
    for rank in range(1, 8192):
        store.set(f"kaiyuan/here/{rank}", '{"host": "node", "facts": {"code": "same"}}')
    before = store.calls
    start_check.start_check(store, who(0, 8192), {"code": "same"}, timedelta(seconds=5))
    assert store.calls - before < 30
    # Those that wait ask the less often the more they are: 8 times a second for each thousand.
    clock = Clock()
    monkeypatch.setattr(store_keys, "time", clock)
    late: Any = SimulatedStore()
    assert not store_keys.wait_for(late, ["kaiyuan/verdict"], 100.0, 8192)
    assert late.calls < 80
