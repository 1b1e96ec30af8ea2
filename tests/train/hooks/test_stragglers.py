"""A rank that is slow before the reduction of gradients is named with its node, and changes no number."""

from __future__ import annotations

import re
import socket
import statistics
from pathlib import Path

import pytest

from megatron_kaiyuan.report.build import build_report
from megatron_kaiyuan.report.status import read_status
from megatron_kaiyuan.train.hooks.stragglers import columns
from tests.helpers.training.small_run import STEPS, losses, metrics, succeed, train_on_bad_machine


def test_a_slow_rank_is_named(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    # Of each of its two micro-batches.
    fault = {"kind": "delay", "from": 0, "to": 10**9, "seconds": 0.1, "rank": 1}
    done = train_on_bad_machine(2, [fault], recipe, f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    rows, node = metrics(tmp_path), socket.gethostname()
    assert "slowest_rank" not in rows[1], "nothing was measured before the first step"
    for step in range(2, STEPS + 1):
        row = rows[step]
        assert row["rank_seconds_max"] >= 0.2 and row["slowest_node"] == node
        assert row["rank_seconds_median"] == pytest.approx((row["rank_seconds_min"] + row["rank_seconds_max"]) / 2)
    assert statistics.mode(rows[step]["slowest_rank"] for step in range(2, STEPS + 1)) == 1
    # The fast rank's own work is not what it waits for the slow one.
    assert statistics.median(rows[step]["rank_seconds_min"] for step in range(3, STEPS + 1)) < 0.15
    assert losses(tmp_path) == losses(finished_run)
    assert re.search(rf"ranks [\d.e-]+/[\d.]+/[\d.]+ s \(slowest 1 on {node}\) \| \d+:", done.stderr)
    found = read_status(tmp_path)
    assert found.ranks is not None and found.ranks.slowest_node == node
    assert f"by rank {found.ranks.slowest_rank} on {node}" in "\n".join(found.lines())
    page = build_report(tmp_path, tmp_path / "report.html").read_text()
    assert f"The slowest rank was on {node} in {STEPS - 1} of {STEPS - 1} rows." in page


def test_rows_between_intervals_have_none(recipe: Path, tmp_path: Path) -> None:
    succeed(2, recipe, f"run_dir={tmp_path}", "monitor.log_every_steps=8")
    rows = metrics(tmp_path)
    assert [step for step in rows if "slowest_rank" in rows[step]] == [8, 16] and max(rows) == STEPS


def test_one_rank_has_no_others(recipe: Path, tmp_path: Path) -> None:
    succeed(1, recipe, f"run_dir={tmp_path}", "train.train_tokens=2048")
    assert not any("slowest_rank" in row for row in metrics(tmp_path).values())


def test_the_columns() -> None:
    found = columns([0.5, 2.0, 1.0, 0.75], ["a", "b", "b", "c"])
    assert found == {
        "rank_seconds_min": 0.5,
        "rank_seconds_median": 0.875,
        "rank_seconds_max": 2.0,
        "slowest_rank": 1,
        "slowest_node": "b",
    }
