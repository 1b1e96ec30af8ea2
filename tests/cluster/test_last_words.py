"""What a hanging job leaves before it is ended: in which order, and whether torch's own tool reads it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.flight_recorder.components.loader import read_dump

from megatron_kaiyuan.cluster import last_words, watchdog
from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.cluster.discover import Rank
from megatron_kaiyuan.cluster.last_words import FLIGHT_RECORDER, LastWords
from megatron_kaiyuan.cluster.loopback import hold_store
from megatron_kaiyuan.cluster.verdict import Alive, judge
from tests.helpers.processes.ranks import free_port

RECORDING = """
import sys
from pathlib import Path
import torch
from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster.last_words import LastWords
device = platform.activate(sys.argv[2])
backend = device.collective_backend
torch.distributed.init_process_group(backend, init_method="tcp://127.0.0.1:" + sys.argv[3], rank=0, world_size=1)
torch.distributed.all_reduce(torch.ones(3, device=device.device))
torch.distributed.barrier()
LastWords(Path(sys.argv[1]), 0, device.flight_recorder).write_flight_recorder()
"""


def _record(run_dir: Path, name: str, **environ: str) -> None:
    program = [sys.executable, "-c", RECORDING, str(run_dir), name, str(free_port())]
    subprocess.run(program, check=True, env={**os.environ, **environ}, timeout=120)


def _operations(run_dir: Path) -> list[str]:
    folder = run_dir / FLIGHT_RECORDER
    dump = read_dump("rank_", str(folder / "rank_0"))
    return [entry["profiling_name"].partition(":")[2] for entry in dump["entries"]]  # type: ignore[union-attr, index]


def test_torch_reads_what_was_recorded(tmp_path: Path) -> None:
    _record(tmp_path, "cpu", TORCH_FR_BUFFER_SIZE="100")
    assert _operations(tmp_path) == ["all_reduce", "barrier"]


@pytest.mark.gpu
def test_torch_reads_what_nccl_recorded(tmp_path: Path) -> None:
    """bash tests/run.sh -m gpu tests/cluster/test_last_words.py"""
    _record(tmp_path, "cuda", TORCH_FR_BUFFER_SIZE="100")
    assert "all_reduce" in _operations(tmp_path)


def test_nothing_is_written_where_nothing_is_recorded(tmp_path: Path) -> None:
    LastWords(tmp_path, 0, lambda: None).write_flight_recorder()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("gone")])
def test_a_failure_is_one_line(failure: Exception, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def recorded() -> bytes:
        raise failure

    LastWords(tmp_path, 3, recorded).write_flight_recorder()
    assert capfd.readouterr().err.startswith("warning: rank 3: its flight recorder could not be written (")


def test_a_recorder_that_hangs_does_not_keep_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_words, "_PATIENCE_SECONDS", 0.1)
    began = time.monotonic()
    LastWords(tmp_path, 0, lambda: time.sleep(60)).write_flight_recorder()  # type: ignore[arg-type, return-value]
    assert time.monotonic() - began < 10


class Ended(BaseException):
    """In the place of the process's end."""


def test_all_of_it_comes_before_a_rank_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(name: str, result: Any = None) -> Callable[..., Any]:
        def noted(*_: object) -> object:
            order.append(name)
            return result

        return noted

    def end(code: int) -> None:
        order.append(f"end {code}")
        raise Ended

    store = hold_store(0, 2, watchdog.timedelta(seconds=20))
    who = Rank(0, 2, 0, 2, "127.0.0.1", store.port, "torchrun")
    words = LastWords(tmp_path, 0, note("flight recorder", pickle.dumps({"entries": []})))
    dog = watchdog.Watchdog(who, 2, 2, words)
    monkeypatch.setattr(watchdog, "log_at_once", note("verdict"))
    monkeypatch.setattr(watchdog.Watchdog, "_write_stacks", note("stacks"))
    monkeypatch.setattr(watchdog.Watchdog, "_wake_to_write_its_stacks", note("wake"))
    monkeypatch.setattr(watchdog.os, "_exit", end)
    silent = Alive(3, 5, True, "file.py:7 (read)", "node7", 42, "1")
    with pytest.raises(Ended):
        dog._end_hanging_job(replace(judge({0: silent, 1: silent}, [1], "node0:29500"), by=0))
    assert order == ["verdict", "flight recorder", "stacks", "wake", "end 1"]
    named = read_bad_nodes(tmp_path)
    assert named is not None and named.hosts == ["node7"] and "rank 1 does not answer" in named.why
    assert (tmp_path / FLIGHT_RECORDER / "rank_0").is_file()
    assert torch.distributed.is_initialized() is False
