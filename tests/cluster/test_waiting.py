"""Whoever waits says for whom, soon and again; names that lead nowhere are given up in one line."""

from __future__ import annotations

import threading
import time

import pytest

from megatron_kaiyuan.cluster import waiting as module
from megatron_kaiyuan.cluster.meeting import NameNotKnown, wait_for_name
from megatron_kaiyuan.cluster.waiting import FIRST_SECONDS, Waiting, waiting

NO_NAME = "no-such-host.invalid:29500"


def test_a_short_wait_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert FIRST_SECONDS <= 30
    wait = Waiting("node 0")
    for _ in range(100):
        wait.look()
    with waiting("node 0"):
        pass
    assert capfd.readouterr().err == ""


def test_a_long_wait_says_so_again(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    who = ["ranks 3-7"]
    wait = Waiting(lambda: who[0])
    for seconds in range(0, 200, 5):
        now[0] = 100.0 + seconds
        if seconds == 60:
            who[0] = "rank 5"
        wait.look()
    assert capfd.readouterr().err.splitlines() == [
        "waiting for ranks 3-7, 30 s by now",
        "waiting for rank 5, 90 s by now",
        "waiting for rank 5, 150 s by now",
    ]


def test_a_library_that_waits_is_spoken_for(capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with waiting("node 0 at a:1", first=0.05):
        time.sleep(0.3)
    assert "waiting for node 0 at a:1, 0 s by now" in capfd.readouterr().err
    assert threading.active_count() == before


def test_a_name_that_leads_nowhere() -> None:
    wait_for_name("127.0.0.1:1")
    wait_for_name("localhost:1", seconds=0)
    with pytest.raises(NameNotKnown, match=r"no-such-host\.invalid \(--rdzv-endpoint\) leads to no address after 0"):
        wait_for_name(NO_NAME, seconds=0)
