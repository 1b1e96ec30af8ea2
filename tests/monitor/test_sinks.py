from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.monitor.sinks import JsonLines, Sink, Sinks, open_sinks
from megatron_kaiyuan.monitor.terminal import Terminal
from tests.helpers.training.sample_run import ROW


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_append_and_step_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    sink = JsonLines(path)
    sink.write(ROW)
    sink.close()
    lines = path.read_text().splitlines()
    assert lines[1] == '{"step": 2, "lo' and json.loads(lines[2]) == ROW


def test_events_are_a_file_of_their_own_too(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, MonitorConfig(), 107, {})
    sinks.event("start", step=0, tokens=0)
    sinks.write(ROW)
    sinks.table("monitor", step=7, activations={})
    sinks.table("samples", step=7, samples=[])
    sinks.event("rollback", step=5, tokens=5000)
    sinks.close()
    rows, events = read(tmp_path / "metrics.jsonl"), read(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["start", "samples", "rollback"]
    assert events == [row for row in rows if row.get("event") not in (None, "monitor")]


class Broken(Sink):
    def __init__(self) -> None:
        self.calls = 0

    def write(self, row: dict) -> None:
        self.calls += 1
        raise ConnectionError("no network")


def test_a_failing_sink_is_dropped_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    sinks = Sinks([lambda: broken, lambda: JsonLines(tmp_path / "m.jsonl")])
    for _ in range(3):
        sinks.write(ROW)
    sinks.close()
    assert broken.calls == 1 and len(read(tmp_path / "m.jsonl")) == 3
    assert "Broken failed and is left out" in capsys.readouterr().err


def test_a_sink_that_does_not_start_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def cannot() -> Sink:
        raise OSError("no server")

    Sinks([cannot]).write(ROW)
    assert "no server" in capsys.readouterr().err


def test_tensorboard_and_wandb_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real files of both; a key in the environment goes into none of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOME_SECRET_KEY", "do-not-write-me")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    sinks = open_sinks(tmp_path, MonitorConfig(tensorboard=True, wandb=True), 107, {"train": {"seed": 1}})
    sinks.write(ROW)
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7000, 5.25)]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert read(tmp_path / "metrics.jsonl") == [ROW]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"do-not-write-me" not in path.read_bytes()


def test_rows_that_find_no_room_are_written_when_there_is_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the system in the middle of a row, which is then lifted."""
    sinks = Sinks([lambda: JsonLines(tmp_path / "m.jsonl")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[0][1]))
    try:
        for step in range(5):
            sinks.write({**ROW, "step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert (tmp_path / "m.jsonl").stat().st_size == 250
    assert capsys.readouterr().err.count("m.jsonl: File too large; rows wait in memory") == 1
    sinks.write({**ROW, "step": 5})
    sinks.close()
    assert [row["step"] for row in read(tmp_path / "m.jsonl")] == list(range(6))


class Exits(Sink):
    """As a tracker that ends the process when its server refuses it."""

    def write(self, row: dict) -> None:
        sys.exit(1)


def test_no_sink_ends_the_run_and_no_lost_stream_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a dead pipe under a library's own stream: warning of the failure fails as well."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as dead:
        monkeypatch.setattr(sys, "stderr", dead)
        monkeypatch.setattr(sys, "stdout", dead)
        sinks = Sinks([Exits, lambda: Terminal(10), lambda: JsonLines(tmp_path / "m.jsonl")])
        for _ in range(3):
            sinks.write(ROW)
        sinks.close()
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            dead.close()
    assert len(read(tmp_path / "m.jsonl")) == 3


def test_a_copy_by_hard_links_does_not_write_into_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "run" / "metrics.jsonl", tmp_path / "copy" / "metrics.jsonl"
    JsonLines(original).write({"step": 1})
    copy.parent.mkdir()
    os.link(original, copy)
    JsonLines(copy).write({"step": 2})
    assert original.read_text() == '{"step": 1}\n'
    assert copy.read_text() == '{"step": 1}\n{"step": 2}\n'
