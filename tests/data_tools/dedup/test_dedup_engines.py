"""The same bytes from one process, several, ranks, whatever dies; an index too."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.files.json_lines import write_rows
from tests.helpers.files.near_copies import real_documents, with_near_copies

ROOT = Path(__file__).parents[3]


def start(folder: Path, output: str, *words: str, rank: int = 0, world: int = 1) -> subprocess.Popen[bytes]:
    environ = {**os.environ}
    if world > 1:
        environ |= {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(world)}
        environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(world)}
    places = ["--output", str(folder / output), "--index", str(folder / f"{output}.index")]
    inputs = ["--input", f"web={folder / 'a.jsonl'}", f"wiki={folder / 'b.jsonl'}"]
    rules = ["--across", "--task-bytes", "150000", "--score", "q", *words]
    line = [sys.executable, "-m", "data_tools.cli", "dedup", *inputs, *places, *rules]
    return subprocess.Popen(line, env=environ, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


def digest(folder: Path, output: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)).removeprefix(output): hashlib.sha256(path.read_bytes()).hexdigest()
        for place in (folder / output, folder / f"{output}.index")
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    texts = with_near_copies(real_documents(700, 150), every=2)
    rows = [{"text": text, "q": n % 7, "tags": [n]} for n, text in enumerate(texts)]
    write_rows(folder / "a.jsonl", rows[:600])
    write_rows(folder / "b.jsonl", rows[600:])
    assert start(folder, "one", "--engine", "local", "--workers", "1").wait() == 0
    assert len(list((folder / "one/documents").rglob("*.parquet"))) > 6
    return folder


def test_two_processes(one: Path) -> None:
    assert start(one, "two", "--engine", "local", "--workers", "2").wait() == 0
    assert digest(one, "two") == digest(one, "one")


@pytest.mark.parametrize("world", [2, 4])
def test_ranks(one: Path, world: int) -> None:
    output = f"ranks{world}"
    ranks = [start(one, output, rank=rank, world=world) for rank in range(world)]
    assert [rank.wait() for rank in ranks] == [0] * world
    assert digest(one, output) == digest(one, "one")
    assert not (one / f"{output}.work").exists()


@pytest.mark.parametrize("engine", ["local", "mpi"])
def test_kills_at_random_moments_lose_nothing(one: Path, engine: str) -> None:
    draw = random.Random(5)
    output = f"killed-{engine}"
    world, words = (2, ()) if engine == "mpi" else (1, ("--workers", "2"))
    # About 80 tasks in all. Each kill comes some tasks after the last one.
    for tasks in sorted(draw.sample(range(3, 75), 3)):
        ranks = [start(one, output, *words, rank=rank, world=world) for rank in range(world)]
        while any(rank.poll() is None for rank in ranks) and finished(one / f"{output}.work") < tasks:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()
        assert not (one / output).exists() or tasks > 60
    assert start(one, output, "--engine", "local", "--workers", "1").wait() == 0
    assert digest(one, output) == digest(one, "one")
    assert not (one / f"{output}.work").exists()


def finished(work: Path) -> int:
    return len(list(work.rglob("*.task.json")))


def test_a_rank_that_dies_is_done_without(one: Path) -> None:
    ranks = [start(one, "left", rank=rank, world=3) for rank in range(3)]
    while finished(one / "left.work") < 12:
        time.sleep(0.005)
    os.killpg(ranks[2].pid, signal.SIGKILL)
    assert [rank.wait() for rank in ranks[:2]] == [0, 0]
    ranks[2].wait()
    assert digest(one, "left") == digest(one, "one")
