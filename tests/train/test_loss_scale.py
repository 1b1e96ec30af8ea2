"""The dynamic loss scaler: saved and restored exactly, agreed on by all ranks, its history told without a gap."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.helpers.training.saved_state import assert_same_state, load
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    events,
    fit_here,
    losses,
    metrics,
    start_from,
    train_on_bad_machine,
)

INITIAL, WINDOW, HYSTERESIS = 2.0**24, 3, 2
SCALER = [
    "train.precision=fp16",
    f"optimizer.initial_loss_scale={INITIAL}",
    f"optimizer.loss_scale_window={WINDOW}",
    f"optimizer.hysteresis={HYSTERESIS}",
]
STEPS = 16


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose scale falls, holds and rises; every step is saved."""
    run_dir = tmp_path_factory.mktemp("scaler") / "run"
    steps = [
        f"train.train_tokens={STEPS * TOKENS_PER_STEP}",
        "checkpoint.save_every_steps=1",
        "checkpoint.keep_last=30",
    ]
    fit_here(recipe, f"run_dir={run_dir}", *SCALER, *steps)
    return run_dir


def test_the_history_of_the_scale_is_that_of_the_rule(whole: Path) -> None:
    """The rule once more, in Python: what each step used, and what is told of it."""
    rows, told = metrics(whole), {event["step"]: event for event in events(whole, "loss_scale")}
    scale, good, left = INITIAL, 0, HYSTERESIS
    for step in range(1, STEPS + 1):
        assert rows[step]["loss_scale"] == scale
        was, overflow, reason = scale, rows[step]["grad_norm"] is None, None
        if overflow:
            good, left, reason = 0, left - 1, "overflow"
            scale = scale / 2 if left <= 0 else scale
        else:
            good += 1
            if good == WINDOW:
                good, left, scale, reason = 0, HYSTERESIS, 2 * scale, f"{WINDOW} good steps"
        if reason is None:
            assert step not in told
        else:
            event = told.pop(step)
            assert (event["reason"], event["was"], event["now"]) == (reason, was, scale)
            assert event["hysteresis_left"] == max(left, 0)
    assert told == {}
    overflows = sum(row["grad_norm"] is None for row in rows.values())
    assert rows[STEPS]["overflow_steps"] == rows[STEPS]["skipped_steps"] == overflows
    assert 3 < overflows < STEPS - 3 and max(row["loss_scale"] for row in rows.values()) > rows[STEPS]["loss_scale"]


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
def test_the_scaler_is_restored_exactly(distributed: bool, recipe: Path, whole: Path, tmp_path: Path) -> None:
    """From a step at which the window is part full and the hysteresis is used up; either optimizer reads it."""
    scalers = {
        step: load(whole / "checkpoints" / f"step_{step}")[1]["optimizer"]["grad_scaler"] for step in range(STEPS)
    }
    step = next(
        n for n in range(2, STEPS - 1) if scalers[n]["growth_tracker"] and scalers[n]["hysteresis_tracker"] <= 0
    )
    run_dir = start_from(whole, step, tmp_path / "run")
    options = [f"train.train_tokens={STEPS * TOKENS_PER_STEP}", f"parallel.use_distributed_optimizer={distributed}"]
    fit_here(recipe, f"run_dir={run_dir}", *SCALER, *options)
    scales = [[metrics(run)[n]["loss_scale"] for n in range(step + 1, STEPS + 1)] for run in (run_dir, whole)]
    assert scales[0] == scales[1] and len(set(scales[0])) > 1
    if distributed:
        assert losses(run_dir) == losses(whole)[step:]
        assert_same_state(run_dir / "checkpoints" / f"step_{STEPS}", whole / "checkpoints" / f"step_{STEPS}")
    assert metrics(run_dir)[STEPS]["overflow_steps"] == metrics(whole)[STEPS]["overflow_steps"]


TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"


@pytest.mark.parametrize(
    ("processes", "layout"),
    [
        (2, []),
        pytest.param(2, ["parallel.use_distributed_optimizer=false", TENSOR], marks=pytest.mark.slow),
        pytest.param(2, [PIPELINE], marks=pytest.mark.slow),
        (4, [TENSOR, PIPELINE]),
    ],
    ids=["dp2", "tp2-plain", "pp2", "tp2-pp2"],
)
def test_an_overflow_on_one_rank_is_one_on_all(processes: int, layout: list[str], recipe: Path, tmp_path: Path) -> None:
    """The last rank alone finds infinity in the gradients that it updates with: no weight of any rank moves.

    All layouts: python -m pytest tests/train/test_loss_scale.py -m "slow or not slow".
    """
    fault = {
        "kind": "infinite_weight_gradient",
        "rank": processes - 1,
        "from": TOKENS_PER_STEP,
        "to": 2 * TOKENS_PER_STEP,
    }
    options = [f"train.train_tokens={3 * TOKENS_PER_STEP}", "checkpoint.save_every_steps=1"]
    scaler = ["train.precision=fp16", "optimizer.initial_loss_scale=1024", "optimizer.hysteresis=1"]
    done = train_on_bad_machine(processes, [fault], recipe, f"run_dir={tmp_path}", *options, *scaler, *layout)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = metrics(tmp_path)
    assert [rows[step]["grad_norm"] is None for step in (1, 2, 3)] == [False, True, False]
    assert [rows[step]["loss_scale"] for step in (1, 2, 3)] == [1024, 1024, 512]
    (event,) = events(tmp_path, "loss_scale")
    assert (event["step"], event["reason"], event["now"]) == (2, "overflow", 512)
    weights = [load(tmp_path / "checkpoints" / f"step_{step}")[0] for step in (0, 1, 2, 3)]
    moved = [
        {name for name in later if not torch.equal(earlier[name], later[name])}
        for earlier, later in itertools.pairwise(weights)
    ]
    assert moved[1] == set() and len(moved[0]) == len(moved[2]) == len(weights[0])
