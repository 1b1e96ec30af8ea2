"""What a run says about its own start."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from megatron_kaiyuan.train.startup import Startup
from tests.helpers.training.small_run import TOKENS_PER_STEP, launch


def test_start_is_told_once_and_by_part(recipe: Path, tmp_path: Path) -> None:
    """Of fresh processes: forks of one that has imported torch have nothing to import."""
    length = f"train.train_tokens={2 * TOKENS_PER_STEP}"
    done = launch(2, ["-m", "megatron_kaiyuan.cli", "train", recipe, f"run_dir={tmp_path}", length])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (index,) = [index for index, row in enumerate(rows) if row.get("event") == "startup"]
    told = rows[index]
    parts = [name for name in told if name not in ("event", "seconds", "time")]
    assert parts == ["imports", "groups", "data", "model", "checkpoint", "first_step"]
    # Behind the first step, and nothing is left out: the parts are rounded one by one.
    assert rows[index - 1]["step"] == 1
    assert sum(told[name] for name in parts) == pytest.approx(told["seconds"], abs=0.04)
    assert all(told[name] >= 0 for name in parts) and told["imports"] > 0.5


def test_first_part_begins_with_the_process() -> None:
    startup = Startup()
    startup.ended("so far")
    time.sleep(0.05)
    startup.ended("sleep")
    # pytest has been at work for longer than a test of it takes.
    assert startup.parts["so far"] > 0.1 and 0.05 <= startup.parts["sleep"] < 10
    assert startup.seconds == pytest.approx(sum(startup.parts.values()))
