"""What trackers hold after restarts and rollbacks, read from their own files."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.monitor.sinks import Sinks, open_sinks
from megatron_kaiyuan.monitor.trackers import tracker_id
from tests.helpers.training.sample_run import ROW


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "SWANLAB_MODE", "SWANLAB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def train(sinks: Sinks, first: int, last: int, loss: float) -> None:
    for step in range(first, last + 1):
        sinks.write({**ROW, "step": step, "tokens": 100 * step, "loss": loss})


def interrupted(run_dir: Path, **trackers: bool) -> None:
    """Steps 1 to 4; a restart at 2 to step 5; a rollback to 3, and steps 4 and 5 once more: losses 1, 2 and 3."""
    sinks = open_sinks(run_dir, MonitorConfig(**trackers), 5, {"seed": 1})
    sinks.event("start", step=0, tokens=0)
    train(sinks, 1, 4, 1.0)
    sinks.close()
    sinks = open_sinks(run_dir, MonitorConfig(**trackers), 5, {"seed": 1})
    sinks.event("resume", step=2, tokens=200)
    train(sinks, 3, 5, 2.0)
    sinks.event("rollback", step=3, tokens=300, left_out=[300, 400])
    train(sinks, 4, 5, 3.0)
    sinks.table("samples", step=5, tokens=500, samples=[{"prompt": "Once", "text": " upon\na time", "finish": "stop"}])
    sinks.table("monitor", step=5, tokens=500, activations={})
    sinks.close()


# Tokens, loss, attempt.
ALL_ROWS = [
    *((100, 1.0, 1), (200, 1.0, 1), (300, 1.0, 1), (400, 1.0, 1)),
    *((300, 2.0, 2), (400, 2.0, 2), (500, 2.0, 2)),
    *((400, 3.0, 3), (500, 3.0, 3)),
]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(100, 1.0), (200, 1.0), (300, 2.0), (400, 3.0), (500, 3.0)]
    (text,) = events.Tensors("samples/1/text_summary")
    assert (text.step, text.tensor_proto.string_val) == (500, ["    Once⟶ upon\n    a time".encode()])


def test_tensorboard_loses_no_row_at_a_kill(tmp_path: Path) -> None:
    """Read while the writer is still open: what a kill would leave."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(tmp_path, MonitorConfig(tensorboard=True), 5, {})
    sinks.event("start", step=0, tokens=0)
    train(sinks, 1, 3, 1.0)
    assert len(EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")) == 3
    sinks.close()


def records(path: Path) -> Iterator[bytes]:
    """Of a file in the form of LevelDB's log, which both libraries write: 7 bytes of header, blocks of 32 KiB."""
    content, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def finished(path: Path) -> list[Any]:
    """The records of a wandb file, once its last one is there: `finish` may return a moment before."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 20
    while True:
        found = [Record.FromString(content) for content in records(path)]
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_wandb_has_one_run_and_every_row(tmp_path: Path) -> None:
    interrupted(tmp_path, wandb=True)
    runs, rows, metrics, tables = set(), [], [], []
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for record in finished(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
            if kind == "metric":
                metrics.append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
            if kind == "history":
                keys = ((item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item)
                items = {key: json.loads(value) for key, value in keys}
                if "samples/path" in items:
                    tables.append(file.parent / "files" / items["samples/path"])
                else:
                    rows.append((items["tokens"], items["loss"], items["attempt"]))
    assert runs == {tracker_id(tmp_path)}
    assert rows == ALL_ROWS
    assert ("*", "tokens") in metrics or ("loss", "tokens") in metrics
    (table,) = [json.loads(path.read_text()) for path in tables]
    assert (table["columns"], table["data"]) == (["step", "prompt", "text"], [[5, "Once", " upon\na time"]])


def test_swanlab_has_one_run_and_every_row(tmp_path: Path) -> None:
    """Where it is installed: `pip install -e '.[tracking]'`."""
    pytest.importorskip("swanlab")
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    interrupted(tmp_path, swanlab=True)
    runs, columns, drawn = set(), {}, {"tokens": {}, "loss": {}, "attempt": {}}
    files = sorted(tmp_path.glob("swanlog/run-*/*.swanlab"))
    assert len(files) == 2
    for number, file in enumerate(files):
        for content in records(file):
            record: Any = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "start":
                runs.add(record.start.id)
            if kind == "column":
                columns[record.column.column_key] = str(record.column)
            if kind == "scalar" and record.scalar.key in drawn:
                drawn[record.scalar.key][number, record.scalar.step] = record.scalar.value.number
    assert runs == {tracker_id(tmp_path)}
    assert list(drawn["tokens"]) == list(drawn["loss"]) == list(drawn["attempt"])
    assert list(zip(*(of.values() for of in drawn.values()), strict=True)) == ALL_ROWS
    assert '"tokens"' in columns["loss"]
    assert "TEXT" in columns["samples/1"]
    (text,) = tmp_path.glob("swanlog/run-*/media/text/*.txt")
    assert text.read_text() == "Once⟶ upon\na time"


def test_a_moved_run_keeps_its_name_and_a_copy_gets_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    name = tracker_id(run_dir)
    assert tracker_id(run_dir) == name and capsys.readouterr().err == ""
    shutil.copytree(run_dir, tmp_path / "copy")
    other = tracker_id(tmp_path / "copy")
    assert other != name and f"a copy of {run_dir}" in capsys.readouterr().err
    assert tracker_id(tmp_path / "copy") == other
    run_dir.rename(tmp_path / "moved")
    assert tracker_id(tmp_path / "moved") == name


def test_a_damaged_name_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tracker_run.json").write_text("[]")
    assert len(tracker_id(tmp_path)) == 16
    assert "tracker_run.json: damaged" in capsys.readouterr().err
