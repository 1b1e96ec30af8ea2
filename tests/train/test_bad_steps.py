"""A bad step never reaches the weights; what follows on it is the same each time the command is given."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.config import FaultsConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.train.bad_steps import BadSteps, StepFigures, robust_zscore
from tests.helpers.training.saved_state import assert_same_state, load
from tests.helpers.training.small_run import STEPS, TOKENS_PER_STEP, batch, events, losses, metrics, start_from
from tests.helpers.training.small_run import train_on_bad_machine as train

EACH_STEP = ["checkpoint.save_every_steps=1", "checkpoint.keep_last=30"]


def documents_of_batch(folder: Path, number: int) -> set[tuple[str, str, int]]:
    """The documents of a batch, counted from 1, found token by token."""
    stream = TokenStream([folder / "phases" / "first", folder / "phases" / "second"], 256)
    found = set()
    for position in range((number - 1) * TOKENS_PER_STEP, number * TOKENS_PER_STEP + 1):
        index, offset = stream.phase_at(position)
        phase = stream.phases[index]
        dataset, sequence = phase.document(phase.locate(offset)[0])
        found.add((phase.name, phase.manifest["corpora"][dataset]["name"], sequence))
    return found


def test_skipped_steps_leave_the_weights_as_they_were(recipe: Path, tmp_path: Path) -> None:
    """Three kinds of faults on two ranks; a kill behind them and the same command change nothing."""
    window = ["faults.spike_window=8", "faults.spike_zscore=6"]
    faults = [batch("nan_loss", 4), batch("infinite_gradient", 6), batch("loss", 13, by=6.0)]
    run_dir = tmp_path / "run"
    done = train(2, faults, recipe, f"run_dir={run_dir}", *EACH_STEP, *window)
    assert done.returncode == 0, done.stderr
    found = events(run_dir, "bad_step")
    assert [event["step"] for event in found] == [4, 6, 13]
    for event, reason in zip(found, ("loss is nan", "gradient norm is ", "deviations above"), strict=True):
        assert reason in event["reason"] and event["action"] == "skip"
    for event in found:
        numbers = {
            (entry["phase"], entry["corpus"], number)
            for entry in event["documents"]
            for span in entry["sequences"].split()
            for number in range(int(span.split("-")[0]), int(span.split("-")[-1]) + 1)
        }
        assert numbers == documents_of_batch(recipe.parent, event["step"])
        before, _ = load(run_dir / "checkpoints" / f"step_{event['step'] - 1}")
        after, common = load(run_dir / "checkpoints" / f"step_{event['step']}")
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert common["progress"]["tokens"] == event["step"] * TOKENS_PER_STEP
    assert metrics(run_dir)[STEPS]["skipped_steps"] == 3
    assert np.isfinite([row["loss"] for step, row in metrics(run_dir).items() if step != 4]).all()

    # From step 10, with half a window that only the checkpoint remembers.
    again = start_from(run_dir, 10, tmp_path / "again")
    assert train(2, faults, recipe, f"run_dir={again}", *EACH_STEP, *window).returncode == 0
    assert losses(again) == losses(run_dir)[10:] and [row["step"] for row in events(again, "bad_step")] == [13]
    assert_same_state(again / "checkpoints" / "step_20", run_dir / "checkpoints" / "step_20")


def test_rollback_leaves_out_the_tokens(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """As if the stream had never held them: a run that starts at the checkpoint without them is the reference."""
    overrides = ["faults.on_bad_step=rollback", "faults.rollback_batches=2"]
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    done = train(2, [batch("nan_loss", 14)], recipe, f"run_dir={run_dir}", *overrides)
    assert done.returncode == 0, done.stderr
    (gone,) = events(run_dir, "rollback")
    assert (gone["step"], gone["left_out"]) == (10, [12 * TOKENS_PER_STEP, 14 * TOKENS_PER_STEP])
    assert "rollback: step 10" in done.stderr and "step 18/18" in done.stdout

    reference = start_from(finished_run, 10, tmp_path / "reference")
    done = train(2, [batch("leave_out", 13, 14)], recipe, f"run_dir={reference}", *overrides)
    assert done.returncode == 0, done.stderr
    assert [metrics(run_dir)[step]["tokens"] // TOKENS_PER_STEP for step in range(11, 19)] == [11, 12, *range(15, 21)]
    kept = [metrics(run_dir)[step]["loss"] for step in range(11, 19)]
    assert kept == [metrics(reference)[step]["loss"] for step in range(11, 19)]
    assert_same_state(run_dir / "checkpoints" / "step_18", reference / "checkpoints" / "step_18")


@pytest.mark.slow
def test_no_endless_rollbacks(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 10, tmp_path / "run")
    overrides = ["faults.on_bad_step=rollback", "faults.rollback_batches=1", "faults.max_rollbacks=2"]
    done = train(2, [batch("nan_loss", 12, 20)], recipe, f"run_dir={run_dir}", *overrides)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "went back to step 10 2 times" in done.stderr
    assert len(events(run_dir, "rollback")) == 2 and len(events(run_dir, "bad_step")) == 3


def test_scale_collapse_of_fp16_stops(recipe: Path, tmp_path: Path) -> None:
    """No injected fault: at a smallest scale of 2 ** 40 every gradient overflows."""
    scale = [f"optimizer.{name}_loss_scale={2**40}" for name in ("initial", "min")]
    overrides = ["train.precision=fp16", *scale, "faults.max_skips_in_a_row=2"]
    done = train(1, [], recipe, f"run_dir={tmp_path}", *overrides)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "step 3 (tokens from 1024): gradients overflow at the smallest loss scale" in done.stderr
    assert "2 bad steps in a row" in done.stderr
    assert [event["action"] for event in events(tmp_path, "bad_step")] == ["skip", "skip", "stop"]


def good(loss: float, phase: int = 0) -> StepFigures:
    return StepFigures(loss=loss, gradient_norm=1.0, loss_scale=1.0, overflow=False, phase=phase)


@given(st.lists(st.floats(0.5, 20), min_size=8, max_size=40), st.floats(0.1, 40))
def test_zscore_against_numpy(window: list[float], value: float) -> None:
    median = np.median(window)
    deviation = 1.4826 * np.median(np.abs(np.array(window) - median))
    expected = (value - median) / max(deviation, 0.01 * median)
    assert math.isclose(robust_zscore(value, window), expected, rel_tol=1e-9, abs_tol=1e-12)


@given(st.lists(st.floats(-0.1, 0.1), min_size=60, max_size=60))
def test_noise_is_no_spike_and_a_spike_is_one(noise: list[float]) -> None:
    judge = BadSteps(FaultsConfig(spike_window=16), 1.0)
    for offset in noise:
        assert judge.judge(good(3 + offset)) is None
    window = [3 + offset for offset in noise[-16:]]
    limit = statistics.median(window) + 12 * max(0.2, 0.031)
    fault = judge.judge(good(limit + 0.1))
    assert fault is not None and fault.action == "skip" and "deviations above" in fault.reason
    assert judge.judge(good(3.0)) is None


def test_window_is_of_one_phase_and_survives_a_restart() -> None:
    judge = BadSteps(FaultsConfig(spike_window=8), 1.0)
    for _ in range(8):
        judge.judge(good(2.0))
    restarted = BadSteps(FaultsConfig(spike_window=8), 1.0)
    restarted.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    for one in (judge, restarted):
        assert one.judge(good(4.0)) is not None
        # The next phase is other data: its loss starts a window of its own.
        assert all(one.judge(good(4.0, phase=1)) is None for _ in range(8))
        assert one.judge(good(8.0, phase=1)) is not None


def test_bounds() -> None:
    judge = BadSteps(FaultsConfig(max_skips_in_a_row=2, max_rollbacks=2), 1.0)
    bad = good(math.nan)
    actions = [fault.action for fault in map(judge.judge, [bad, bad, good(1.0), bad, bad, bad]) if fault]
    assert actions == ["skip", "skip", "skip", "skip", "stop"]
    for step in (10, 10, 20, 20):
        judge.count_rollback(step)
    with pytest.raises(UserError, match="went back to step 20 2 times"):
        judge.count_rollback(20)


def test_the_loss_scaler_may_do_its_work() -> None:
    judge = BadSteps(FaultsConfig(on_bad_step="stop"), 1.0)
    overflow = StepFigures(loss=1.0, gradient_norm=math.nan, loss_scale=2.0, overflow=True, phase=0)
    assert judge.judge(overflow) is None
    fault = judge.judge(replace(overflow, loss_scale=1.0))
    assert fault is not None and fault.reason.startswith("gradients overflow at the smallest loss scale")
    # No scale brings a forward pass back into the range.
    fault = judge.judge(replace(overflow, loss=math.inf))
    assert fault is not None and fault.reason == "loss is inf"
