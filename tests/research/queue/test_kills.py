"""SIGKILL at random moments, of the worker or of one of its runs: no run is lost, and none is done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from megatron_kaiyuan.research.queue.request import Run, write_list
from tests.helpers.processes.rank_server import started
from tests.helpers.training.run_lists import WORKER, make_runs, require_all_whole, whole_runs, without_times, work
from tests.helpers.training.small_run import events

RUNS, STEPS = 4, 8
# Runs resume from checkpoints of these steps, and are killed while they write them.
OFTEN = "checkpoint.save_every_steps=2"


@pytest.fixture(scope="module")
def runs(queue_recipe: Path) -> list[Run]:
    return make_runs(queue_recipe, RUNS, OFTEN, steps=STEPS)


@pytest.fixture(scope="module")
def undisturbed(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The table of a queue that nothing happened to."""
    return without_times(work(tmp_path_factory.mktemp("undisturbed"), runs)["rows"])


def kill_one(path: Path, drawn: random.Random, longest: float) -> str | None:
    """Start a worker on a list and kill it, or one of its runs, after a while; which, or None: it had ended before."""
    with started(1, [*WORKER, path, "--slots", 2]) as job:
        worker = psutil.Process(job.ranks[0])
        time.sleep(drawn.uniform(0, longest))
        try:
            children = worker.children()
            victim = drawn.choice([worker, *children])
            victim.kill()
        except psutil.NoSuchProcess:
            return None
        code = job.wait(120)
        deadline = time.monotonic() + 10
        # A run ends with its worker.
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    if victim == worker:
        # One that had ended already, and was still to be waited for, can be sent a signal as well.
        assert code in (0, -signal.SIGKILL)
        return "worker" if code else None
    # The run had come to its end already, or is told as failed.
    assert code in (0, 2)
    return "run"


def disturb(folder: Path, runs: list[Run], undisturbed: list[dict], kills: int, drawn: random.Random) -> list[str]:
    """Kill so often, on one folder after another; what was killed."""
    killed: list[str] = []
    for number in range(kills):
        place = folder / str(number)
        path, whole = write_list(place, runs), {}
        while len(whole) < len(runs) and len(killed) < kills:
            victim = kill_one(path, drawn, longest=4.0)
            found = whole_runs(place)
            assert whole.items() <= found.items()
            whole = found
            killed += [victim] if victim else []
        require_all_whole(place, runs, undisturbed, whole)
        if len(killed) >= kills:
            break
    return killed


def test_a_few_kills_lose_and_double_nothing(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    killed = disturb(tmp_path, runs, undisturbed, 4, random.Random(3))
    assert len(killed) == 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    """python -m pytest -m slow -s tests/research/queue/test_kills.py"""
    killed = disturb(tmp_path, runs, undisturbed, 200, random.Random(5))
    folders = len(list(tmp_path.iterdir()))
    print(f"{killed.count('worker')} workers and {killed.count('run')} runs killed on {folders} lists of {RUNS} runs")
    assert len(killed) == 200


def test_two_queues_and_kills(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    """One of two queues is killed: the other takes its runs over."""
    path = write_list(tmp_path, runs)
    with started(1, [*WORKER, path, "--slots", 1]) as one, started(1, [*WORKER, path, "--slots", 1]) as other:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "runs").glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(one.ranks[0], signal.SIGKILL)
        assert other.wait(200) == 0
    require_all_whole(tmp_path, runs, undisturbed, whole_runs(tmp_path))


def test_a_signal_saves_what_is_at_work(runs: list[Run], undisturbed: list[dict], tmp_path: Path) -> None:
    """As ctrl-C, or a batch system's word before the time is up."""
    long = [replace(run, overrides=(*run.overrides, "checkpoint.save_every_steps=1000")) for run in runs]
    # A run of eight steps may end before the signal comes, on a busy machine, and the signal finds another one or none.
    hit = any(stopped_at_work(tmp_path / str(number), long, undisturbed) for number in range(5))
    assert hit


def stopped_at_work(place: Path, runs: list[Run], undisturbed: list[dict]) -> bool:
    """Send a worker a signal while a run is at work, and finish the list; whether the run was in the midst of it."""
    path = write_list(place, runs)
    with started(1, [*WORKER, path, "--slots", 1]) as job:
        deadline = time.monotonic() + 60
        while not any('"loss"' in file.read_text() for file in (place / "runs").glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        job.send_signal(signal.SIGTERM)
        # 0 where all runs had ended by then.
        assert job.wait(60) in (0, 128 + signal.SIGTERM)
    stops = {file.parent: events(file.parent, "stop") for file in (place / "runs").glob("[!.]*/metrics.jsonl")}
    at_work = [(folder, stop) for folder, found in stops.items() for stop in found if not stop["finished"]]
    assert len(at_work) <= 1
    done = work(place, runs)
    assert without_times(done["rows"]) == undisturbed
    taken = [(folder, stop["step"]) for folder, stop in at_work if stop["step"]]
    # It was taken up where it had been stopped.
    assert all([event["step"] for event in events(folder, "resume")] == [step] for folder, step in taken)
    return bool(taken)
