"""What rooms record, over real ranks, against NumPy's mean, sum and maximum of the values that each rank lists."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kaiyuan.metrics import announce, record
from megatron_kaiyuan.report import build_report
from tests.helpers.processes.rank_server import run as run_ranks
from tests.helpers.training.saved_state import assert_same_state
from tests.helpers.training.small_run import STEPS, TOKENS_PER_STEP, fit_here, losses, metrics

EVERY = 4
ROWS = range(EVERY, STEPS + 1, EVERY)
WORKER = Path(__file__).parents[2] / "helpers/training/recording_train.py"
LAYOUTS = {
    "2 stages": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "2 stages x 2 data": (4, ["parallel.pipeline_model_parallel_size=2"]),
    "2 tensor x 2 data": (4, ["parallel.tensor_model_parallel_size=2"]),
}
REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "model/mean": np.mean,
    "model/max": np.max,
    "model/sum": np.sum,
    "data/sum": np.sum,
    "data/mean": np.mean,
    "data/max_of_rank_1": np.max,
    "optim/late": np.sum,
}
SLOW = pytest.mark.slow


def expected(folder: Path, ranks: int, row: int) -> dict[str, float]:
    """Columns of a row, of the lists of all ranks; what was recorded too late for a row is in the next."""
    values: dict[str, list[float]] = defaultdict(list)
    for rank in range(ranks):
        for step, name, value in json.loads((folder / f"recorded_{rank}.json").read_text()):
            last = step + EVERY if name == "optim/late" else step
            if row - EVERY < last <= row:
                values[name].append(value)
    return {name: REDUCTIONS[name](of) for name, of in values.items()}


def check(folder: Path, ranks: int) -> dict[int, dict]:
    rows = metrics(folder)
    got = [json.loads((folder / f"reduced_{rank}.json").read_text()) for rank in range(ranks)]
    assert all(one == got[0] and [list(row) for row in one] == [list(row) for row in got[0]] for one in got)
    for row, reduced in zip(ROWS, got[0], strict=True):
        columns = expected(folder, ranks, row)
        assert reduced.keys() == columns.keys() | {"data/not_a_number"}
        assert {name: rows[row][name] for name in reduced} == reduced
        assert reduced.pop("data/not_a_number") == (None if row == 8 else 1)
        for name, value in columns.items():
            assert reduced[name] == pytest.approx(value, rel=1e-12), (row, name)
    return rows


def test_two_ranks_and_no_bit_of_training_changes(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    every = f"monitor.log_every_steps={EVERY}"
    prometheus = tmp_path / "kaiyuan.prom"
    done = run_ranks(
        2, [WORKER, tmp_path, recipe, f"run_dir={tmp_path}", every, f"monitor.prometheus_file={prometheus}"]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = check(tmp_path, 2)
    assert [row["loss"] for row in rows.values()] == losses(finished_run)[EVERY - 1 :: EVERY]
    assert_same_state(tmp_path / "checkpoints" / f"step_{STEPS}", finished_run / "checkpoints" / f"step_{STEPS}")
    last = rows[STEPS]
    assert f"model/mean {last['model/mean']:.4g}" in done.stdout + done.stderr
    assert "data/mean" not in done.stdout + done.stderr
    assert f'kaiyuan_recorded{{run="{tmp_path.name}",metric="data/sum"}} {last["data/sum"]!r}' in prometheus.read_text()
    page = build_report(tmp_path, tmp_path / "report.html").read_text()
    assert "data/max_of_rank_1" in page and "optim/late" in page


@pytest.mark.parametrize(
    "layout", [one if one == "2 stages x 2 data" else pytest.param(one, marks=SLOW) for one in LAYOUTS]
)
def test_layouts(layout: str, recipe: Path, tmp_path: Path) -> None:
    """All of them: python -m pytest tests/train/hooks/test_recorded_metrics.py -m "slow or not slow"."""
    ranks, overrides = LAYOUTS[layout]
    settings = [f"monitor.log_every_steps={EVERY}", "train.micro_batch_size=1"]
    done = run_ranks(ranks, [WORKER, tmp_path, recipe, f"run_dir={tmp_path}", *settings, *overrides])
    assert done.returncode == 0, done.stderr[-3000:]
    check(tmp_path, ranks)
    if "stages" in layout:
        mine = json.loads((tmp_path / "recorded_0.json").read_text())
        assert not any(name.startswith("model/") for _, name, _ in mine), "the first stage computes no loss"


@pytest.mark.parametrize("announced", [True, False])
def test_the_row_of_a_first_value_has_it_if_it_was_announced(announced: bool, recipe: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.train.hooks.hook import Hook
    from megatron_kaiyuan.train.session import Session

    class Recording(Hook):
        def start(self, session: Session) -> None:
            if announced:
                announce("test/step", "max")

        def after_step(self, session: Session, result: Any) -> None:
            record("test/step", result.step, "max")

    def prepare(session: Session) -> None:
        session.hooks.insert(0, Recording())

    fit_here(recipe, f"run_dir={tmp_path}", f"train.train_tokens={3 * TOKENS_PER_STEP}", prepare=prepare)
    rows = metrics(tmp_path)
    assert [rows[step].get("test/step") for step in (1, 2, 3)] == [1 if announced else None, 2, 3]


def test_without_a_metric_there_is_no_collective(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_kaiyuan.train.hooks import reduce

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a collective")

    monkeypatch.setattr(reduce.distributed, "all_gather_object", refuse)
    monkeypatch.setattr(reduce.distributed, "all_gather_into_tensor", refuse)
    fit_here(recipe, f"run_dir={tmp_path}", f"train.train_tokens={2 * TOKENS_PER_STEP}")
    assert len(metrics(tmp_path)) == 2
