"""The layout of ranks does not change what is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_run import TOKENS_PER_STEP, losses, metrics, start_from, succeed

TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
LAYOUTS = {
    "dp2": (2, []),
    "tp2": (2, [TENSOR]),
    "tp2-sequence": (2, [TENSOR, "parallel.sequence_parallel=true"]),
    "pp2": (2, [PIPELINE]),
    "tp2-pp2": (4, [TENSOR, PIPELINE]),
    "dp2-overlap": (2, ["parallel.overlap_grad_reduce=true"]),
    "one process, larger micro-batch": (1, ["train.micro_batch_size=4"]),
}


@pytest.fixture(scope="module")
def five_steps(recipe: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process over five steps from the same initial weights."""
    run_dir = start_from(finished_run, 0, tmp_path_factory.mktemp("one_process"))
    succeed(1, recipe, f"run_dir={run_dir}", f"train.train_tokens={5 * TOKENS_PER_STEP}")
    return losses(run_dir)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_process(
    layout: str, recipe: Path, finished_run: Path, five_steps: list[float], tmp_path: Path
) -> None:
    processes, overrides = LAYOUTS[layout]
    run_dir = start_from(finished_run, 0, tmp_path)
    succeed(processes, recipe, f"run_dir={run_dir}", f"train.train_tokens={5 * TOKENS_PER_STEP}", *overrides)
    assert len(five_steps) == 5
    np.testing.assert_allclose(losses(run_dir), five_steps, rtol=2e-6)


def test_it_learns(finished_run: Path) -> None:
    """Uniform guessing costs ln 256 nats; the next id is one of four, so that ln 4 is the floor."""
    found = losses(finished_run)
    assert abs(found[0] - np.log(256)) < 0.2
    assert np.log(4) < found[-1] < found[0] - 1


def test_fp16_with_the_dynamic_scaler(recipe: Path, tmp_path: Path) -> None:
    """20 steps from a scale that is too high: it comes down, the rest of the steps learn."""
    scaler = ["optimizer.initial_loss_scale=4194304", "optimizer.loss_scale_window=1000", "optimizer.hysteresis=1"]
    succeed(2, recipe, f"run_dir={tmp_path}", "train.precision=fp16", *scaler)
    rows = metrics(tmp_path)
    skipped = {step for step, row in rows.items() if row["grad_norm"] is None}
    assert len(rows) == 20 and 1 in skipped and len(skipped) < 10
    for step in range(1, 20):
        assert rows[step + 1]["loss_scale"] == rows[step]["loss_scale"] / (2 if step in skipped else 1)
    assert rows[20]["skipped_steps"] == len(skipped)
    assert np.isfinite(losses(tmp_path)).all() and losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.3


def test_bf16_follows_fp32(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    succeed(2, recipe, f"run_dir={tmp_path}", "train.precision=bf16")
    np.testing.assert_allclose(losses(tmp_path), losses(finished_run), rtol=0.03)
