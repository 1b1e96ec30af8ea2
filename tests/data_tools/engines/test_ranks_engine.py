"""Processes of this machine and ranks finish the same stage: each task once, the records in the order of the tasks."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.engines import ranks
from data_tools.engines.local import LocalEngine
from data_tools.engines.ranks import RanksEngine, claim_order, in_words
from data_tools.engines.stage import Engine, Stage, Target
from data_tools.reading.place import Place
from megatron_kaiyuan.cluster import waiting
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.locks import lock


@dataclass(frozen=True)
class Note:
    """A task that leaves its number, and the process that did it."""

    log: Path
    wrong: int = -1

    def __call__(self, number: int, target: Target) -> dict[str, Any]:
        if number == self.wrong:
            raise UserError(f"task {number} is wrong")
        time.sleep(0.002)
        with target.file(".txt") as path:
            path.write_text(str(number))
        with open(self.log, "a") as file:
            file.write(f"{number} {os.getpid()}\n")
        return {"number": number}


def stage(folder: Path, tasks: int = 40, wrong: int = -1) -> Stage:
    numbers = list(range(tasks))
    return Stage("", folder / "stage", Note(folder / "log", wrong), numbers, [f"{i}" for i in numbers], numbers)


ENGINES = {
    "this process": LocalEngine(1),
    "processes": LocalEngine(3),
    "one rank": RanksEngine(Place()),
    "a rank with processes": RanksEngine(Place(1, 2), 3),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_each_task_is_done_once_and_never_again(engine: Engine, tmp_path: Path) -> None:
    wanted = [{"number": number} for number in range(40)]
    assert engine.run(stage(tmp_path)) == wanted
    log = (tmp_path / "log").read_text()
    assert sorted(int(line.split()[0]) for line in log.splitlines()) == list(range(40))
    processes = {line.split()[1] for line in log.splitlines()}
    assert (str(os.getpid()) in processes) == (engine.workers == 1)
    (tmp_path / "stage/7.txt").unlink()
    assert engine.run(stage(tmp_path)) == wanted
    assert [line.split()[0] for line in (tmp_path / "log").read_text()[len(log) :].splitlines()] == ["7"]
    assert sorted(path.suffix for path in (tmp_path / "stage").iterdir()) == [".json"] * 40 + [".txt"] * 40


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_the_error_of_a_task_comes_through(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 20 is wrong"):
        engine.run(stage(tmp_path, wrong=20))
    assert engine.run(stage(tmp_path)) == [{"number": number} for number in range(40)]


def test_a_rank_waits_for_the_task_of_another_one(tmp_path: Path) -> None:
    found: list[Any] = []
    rank = threading.Thread(target=lambda: found.extend(RanksEngine(Place()).run(stage(tmp_path, 3))))
    with lock(tmp_path / "stage/1.lock"):
        rank.start()
        time.sleep(0.5)
        assert found == [] and (tmp_path / "stage/0.txt").exists() and not (tmp_path / "stage/1.txt").exists()
    rank.join()
    assert found == [{"number": number} for number in range(3)]


@given(tasks=st.integers(0, 30), processes=st.integers(1, 40))
def test_processes_begin_at_different_tasks_and_try_all(tasks: int, processes: int) -> None:
    orders = [claim_order(range(tasks), process, processes) for process in range(processes)]
    assert all(sorted(order) == list(range(tasks)) for order in orders)
    if tasks >= processes:
        assert len({order[0] for order in orders}) == processes


def test_a_long_wait_for_others_names_their_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A minute of a clock that sleep moves; then the other process ends."""
    now = [0.0]
    held = ExitStack()

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 60:
            held.close()

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(ranks, "time", SimpleNamespace(sleep=sleep))
    with held:
        held.enter_context(lock(tmp_path / "stage/1.lock"))
        assert RanksEngine(Place()).run(stage(tmp_path, 3)) == [{"number": number} for number in range(3)]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "waiting" in line]
    assert re.match(r"waiting for other processes to finish task 1 of '' in .*/stage, 3[0-2] s by now$", line)


def test_names_of_many_tasks_are_cut() -> None:
    assert in_words(["a"]) == "task a"
    assert in_words([str(number) for number in range(2000)]) == "tasks 0, 1, 2, 3 and 1,996 more"
