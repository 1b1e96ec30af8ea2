"""The file for Prometheus' node exporter, read by Prometheus' own parser."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.monitor.prometheus import Prometheus
from megatron_kaiyuan.monitor.sinks import open_sinks
from tests.helpers.training import sample_run

ROW = {
    **sample_run.ROW,
    "lr_head": 5e-4,
    "grad_norm": None,
    "loss_scale": 65536.0,
    "rank_seconds_min": 0.5,
    "rank_seconds_median": 0.75,
    "rank_seconds_max": 1.5,
    "slowest_rank": 3,
    "slowest_node": "node1",
    "time": 1764500000.5,
}
START: dict[str, Any] = {"event": "start", "step": 0, "tokens": 0, "total_steps": 20, "world_size": 2, "time": 1.0}


def samples(path: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, each under a family that has a type and a help text."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.type in ("gauge", "counter") and family.documentation
        for sample in family.samples:
            assert sample.timestamp is None, "the textfile collector refuses files with time stamps"
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def labels(**more: str) -> frozenset[tuple[str, str]]:
    return frozenset({"run": "mine", **more}.items())


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    path, run_dir = tmp_path / "kaiyuan.prom", tmp_path / "mine"
    sinks = open_sinks(run_dir, MonitorConfig(prometheus_file=path), 20, {})
    sinks.event("start", **{key: value for key, value in START.items() if key not in ("event", "time")})
    assert samples(path)["kaiyuan_planned_steps", labels()] == 20
    sinks.write(ROW)
    found = samples(path)
    for name, value in {
        "kaiyuan_step": 7,
        "kaiyuan_tokens": 7000,
        "kaiyuan_loss": 5.5,
        "kaiyuan_learning_rate": 1e-3,
        "kaiyuan_loss_scale": 65536,
        "kaiyuan_tokens_per_second": 500,
        "kaiyuan_row_timestamp_seconds": 1764500000.5,
        "kaiyuan_running": 1,
        "kaiyuan_slowest_rank": 3,
    }.items():
        assert found[name, labels()] == value, name
    assert found["kaiyuan_learning_rate", labels(weights="head")] == 5e-4
    assert ("kaiyuan_learning_rate", labels(weights="qkv")) not in found, "it is that of the schedule"
    assert found["kaiyuan_rank_seconds", labels(of_ranks="max")] == 1.5
    assert ("kaiyuan_gradient_norm", labels()) not in found, "a step that was skipped has none"
    for _ in range(2):
        sinks.event("bad_step", step=8)
    sinks.event("checkpoint", step=5)
    found = samples(path)
    assert found["kaiyuan_events_total", labels(event="bad_step")] == 2
    assert found["kaiyuan_checkpoint_step", labels()] == 5 and found["kaiyuan_loss", labels()] == 5.5
    sinks.close()
    assert samples(path)["kaiyuan_running", labels()] == 0
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["kaiyuan.prom"]


def test_a_name_with_quotes(tmp_path: Path) -> None:
    sink = Prometheus(tmp_path / "k.prom", tmp_path / 'a "b"\\c\nd')
    sink.write(ROW)
    assert ("kaiyuan_step", frozenset({("run", 'a "b"\\c\nd')})) in samples(tmp_path / "k.prom")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "k.prom"
    sink = Prometheus(path, tmp_path / "mine")
    sink.write(ROW)
    whole = len(samples(path))
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            sink.write(ROW)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert {len(samples(path)) for _ in range(200)} == {whole}
    finally:
        done.set()
        writer.join()


def test_a_folder_that_goes_away_costs_the_file_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    sinks = open_sinks(tmp_path / "mine", MonitorConfig(prometheus_file=folder / "k.prom"), 20, {})
    folder.rmdir()
    for _ in range(2):
        sinks.event("bad_step", step=1)
    assert capsys.readouterr().err.count("Prometheus failed and is left out") == 1
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "message"), [("k.txt", r"reads \*\.prom only"), ("none/k.prom", "is not a folder; make it first")]
)
def test_a_path_that_the_collector_would_not_read(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, ValidationError), match=message):
        open_sinks(tmp_path / "mine", MonitorConfig(prometheus_file=tmp_path / name), 20, {})
