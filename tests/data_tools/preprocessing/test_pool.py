"""The pool of workers: forked or spawned, killed at any moment, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_tools.engines import pool as pool_module
from data_tools.preprocessing.shards import Shards
from data_tools.preprocessing.workers import WorkerSettings, WriterPool
from data_tools.reading.inputs import find_inputs
from data_tools.reading.tasks import Settings, TaskGroup, cut_groups
from data_tools.tokenizers.tokenizer import TextTokenizer
from megatron_kaiyuan.errors import UserError
from tests.helpers.files.json_lines import write_rows

ROOT = Path(__file__).parents[3]
# Runs beside the test and kills one of the children that appear of a process, after some milliseconds, and again.
KILLER = """
import contextlib, itertools, psutil, sys, time
parent = psutil.Process(int(sys.argv[1]))
seen = {child.pid for child in parent.children()}
print("ready", flush=True)
for turn in itertools.count():
    while not (fresh := [child for child in parent.children() if child.pid not in seen]):
        pass
    seen.update(child.pid for child in fresh)
    time.sleep(turn % 7 / 200)
    with contextlib.suppress(psutil.Error):
        fresh[0].kill()
"""
# A thread that runs at the start keeps the pool from forking.
WITH_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
from data_tools.cli import main
main()
"""


@pytest.fixture
def job(tokenizer_path: Path, tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(Settings(tokenizer_path, tokenizer_engine="reference"), (tmp_path / "c_text_document",), 0, 0)


@pytest.fixture
def tasks(job: WorkerSettings, tokenizer: TextTokenizer, tmp_path: Path) -> list[TaskGroup]:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "some words " * 50}] * 4000)
    return cut_groups(find_inputs([path]), job.settings, tokenizer.description(), 100_000)


@pytest.fixture
def tokenizer(tokenizer_path: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_path, engine="reference")


@contextlib.contextmanager
def another_thread() -> Iterator[None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@contextlib.contextmanager
def killing() -> Iterator[None]:
    resource_tracker.ensure_running()  # it is a child too, and not to be killed
    line: list[str | Path] = [sys.executable, "-c", KILLER, str(os.getpid())]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killer:
        try:
            assert killer.stdout
            assert killer.stdout.readline() == "ready\n"
            yield
        finally:
            killer.kill()


WAYS: dict[str, Callable[[], Any]] = {
    "forked": nullcontext,
    "spawned": another_thread,
}


def workers_of(process: int, way: str) -> list[psutil.Process]:
    """Children that are workers; those that have just gone are no more.

    What is spawned has the command line of its parent for a moment, also the tracker that is to be left alone.
    """
    found = []
    for child in psutil.Process(process).children():
        with contextlib.suppress(psutil.Error):
            line = str(child.cmdline())
            is_worker = "resource_tracker" not in line if way == "forked" else "spawn_main" in line
            if is_worker and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_tasks_come_back_once_each(
    way: str, job: WorkerSettings, tasks: list[TaskGroup], tokenizer: TextTokenizer
) -> None:
    before = workers_of(os.getpid(), way)
    with WAYS[way](), WriterPool(job, 2, tokenizer) as pool:
        assert pool.difference("reference", ["one", "two"] * 50) is None
        written = dict(pool.write(tasks, "reference"))
    assert set(written) == set(tasks)
    assert sum(record.sequences for record in written.values()) == 4000
    assert all(Shards(job.prefixes).finished(task) == record for task, record in written.items())
    assert workers_of(os.getpid(), way) == before


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_may_die_at_any_moment(
    way: str, job: WorkerSettings, tasks: list[TaskGroup], tokenizer: TextTokenizer
) -> None:
    with killing(), WAYS[way]():
        for _ in range(8):
            with pytest.raises(UserError, match="a worker process died"), WriterPool(job, 2, tokenizer) as pool:
                while True:
                    for task, _ in pool.write(tasks, "reference"):
                        Shards(job.prefixes).record_path(task).unlink()


@pytest.mark.parametrize("way", WAYS)
def test_the_command_ends_in_one_line(way: str, tokenizer_path: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "some words " * 500}] * 20_000)
    line: list[str | Path] = [
        sys.executable,
        *(["-m", "data_tools.cli"] if way == "forked" else ["-c", WITH_THREAD]),
        "preprocess",
    ]
    line += ["--workers", "2", "--input", path, "--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer_path]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        # Not the one child that tries the tokenizer before.
        while len(workers := workers_of(process.pid, way)) < 2:
            assert process.poll() is None
        with contextlib.suppress(psutil.NoSuchProcess):
            workers[0].kill()
        _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message.startswith("error: a worker process died")
    assert message.count("\n") == 1
    assert {found.name for found in tmp_path.iterdir()} <= {"in.jsonl", "c_text_document.shards"}


@pytest.mark.parametrize("way", WAYS)
def test_workers_end_with_a_killed_command(way: str, tokenizer_path: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "some words " * 500}] * 20_000)
    line: list[str | Path] = [
        sys.executable,
        *(["-m", "data_tools.cli"] if way == "forked" else ["-c", WITH_THREAD]),
        "preprocess",
    ]
    line += ["--workers", "2", "--input", path, "--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer_path]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while len(workers := workers_of(process.pid, way)) < 2:
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
        assert process.communicate()[1] == ""


def test_the_error_of_a_task_comes_through(
    job: WorkerSettings, tasks: list[TaskGroup], tokenizer: TextTokenizer
) -> None:
    Path(tasks[0].tasks[0].file.name).write_text("{")
    with pytest.raises(UserError, match=r"in\.jsonl(:1: not JSON|: was )"), WriterPool(job, 2, tokenizer) as pool:
        list(pool.write(tasks, "reference"))


def test_threads_of_libraries_are_switched_off_for_workers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    with pool_module.one_thread():
        assert (os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"]) == ("false", "1")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert "RAYON_NUM_THREADS" not in os.environ
