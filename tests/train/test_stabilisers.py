"""Stabilisers beyond the standard recipe: off they change nothing, on they learn the same in any layout of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.training.small_run import TOKENS_PER_STEP, events, losses, metrics, start_from, succeed, train

THREE_STEPS = f"train.train_tokens={3 * TOKENS_PER_STEP}"
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
SEQUENCE = "parallel.sequence_parallel=true"


@pytest.fixture(scope="module")
def start(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a step 0, from which another layout begins with the same weights."""
    run_dir = tmp_path_factory.mktemp("start") / "run"
    succeed(1, recipe, f"run_dir={run_dir}", f"train.train_tokens={TOKENS_PER_STEP}")
    return run_dir


def rows(processes: int, recipe: Path, start: Path, run_dir: Path, *overrides: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of three steps from the weights of another run's step 0."""
    start_from(start, 0, run_dir)
    succeed(processes, recipe, f"run_dir={run_dir}", THREE_STEPS, *overrides)
    found = metrics(run_dir)
    return losses(run_dir), [found[step]["grad_norm"] for step in sorted(found)]


# So large that it shows: a fresh network's logits are small.
Z_LOSS = ["train.z_loss=1", "data.eod_mask_loss=true"]


def test_z_loss_moves_the_weights_but_is_not_reported(recipe: Path, start: Path, tmp_path: Path) -> None:
    plain = rows(1, recipe, start, tmp_path / "plain", "data.eod_mask_loss=true")
    found = rows(1, recipe, start, tmp_path / "one", *Z_LOSS)
    np.testing.assert_allclose(found[0][0], plain[0][0], rtol=1e-6)
    assert abs(found[1][0] / plain[1][0] - 1) > 0.1 and abs(found[0][2] / plain[0][2] - 1) > 1e-3
    for name, layout in {"tp2": [TENSOR, SEQUENCE], "pp2": [PIPELINE], "dp2": []}.items():
        np.testing.assert_allclose(rows(2, recipe, start, tmp_path / name, *Z_LOSS, *layout), found, rtol=5e-6)


def test_z_loss_is_scaled_with_the_loss_in_fp16(recipe: Path, start: Path, tmp_path: Path) -> None:
    fp16 = [*Z_LOSS, "train.precision=fp16", "optimizer.initial_loss_scale=1024"]
    succeed(1, recipe, f"run_dir={tmp_path / 'fp16'}", f"train.train_tokens={TOKENS_PER_STEP}", *fp16)
    _, norms = rows(1, recipe, start, tmp_path / "fp32", *Z_LOSS)
    assert metrics(tmp_path / "fp16")[1]["grad_norm"] == pytest.approx(norms[0], rel=0.01)


def test_embedding_norm_in_any_layout(recipe: Path, tmp_path: Path) -> None:
    """Its gain is in the checkpoint that the layouts start from; with sequence parallelism its gradient is summed."""
    norm = ["model.embedding_norm=true", "checkpoint.save_every_steps=1", "monitor.activations_every_steps=3"]
    succeed(1, recipe, f"run_dir={tmp_path / 'start'}", THREE_STEPS, *norm)
    found = losses(tmp_path / "start")
    assert events(tmp_path / "start", "monitor")[0]["gradients"]["embedding_norm"]["norm"][0] > 0
    # From the second step, whose gains are no longer 1.
    for name, layout in {"tp2": [TENSOR, SEQUENCE], "pp2": [PIPELINE], "dp2": []}.items():
        run_dir = start_from(tmp_path / "start", 1, tmp_path / name)
        succeed(2, recipe, f"run_dir={run_dir}", THREE_STEPS, *norm, *layout)
        np.testing.assert_allclose(losses(run_dir), found[1:], rtol=5e-6)


def test_weights_of_a_run_without_embedding_norm_can_be_taken_not_those_of_one_with(
    recipe: Path, start: Path, tmp_path: Path
) -> None:
    one_step = f"train.train_tokens={TOKENS_PER_STEP}"
    source = f"init_from={start / 'checkpoints' / 'step_0'}"
    succeed(1, recipe, f"run_dir={tmp_path / 'with'}", source, one_step, "model.embedding_norm=true")
    assert (
        "the weights of model.embedding_norm, which was off there, start with gain 1"
        in (tmp_path / "with" / "metrics.jsonl").read_text()
    )
    source = f"init_from={tmp_path / 'with' / 'checkpoints' / 'step_0'}"
    done = train(1, recipe, f"run_dir={tmp_path / 'without'}", source, one_step)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "model.embedding_norm is on there, off here" in done.stderr


FP16 = ["train.precision=fp16", "optimizer.initial_loss_scale=1024", "checkpoint.save_every_steps=1"]
TOGETHER = ["model.embedding_norm=true", "model.fp32_residual=true", "model.fp32_head=true", "train.z_loss=1e-4"]


@pytest.mark.slow
def test_all_together_in_fp16(recipe: Path, tmp_path: Path) -> None:
    """Layouts round differently; a pipeline that received its stream in another precision would be far off."""
    succeed(1, recipe, f"run_dir={tmp_path / 'one'}", THREE_STEPS, *TOGETHER, *FP16)
    found = losses(tmp_path / "one")
    for name, layout in {"tp2": [TENSOR, SEQUENCE], "pp2": [PIPELINE]}.items():
        run_dir = start_from(tmp_path / "one", 0, tmp_path / name)
        succeed(2, recipe, f"run_dir={run_dir}", THREE_STEPS, *TOGETHER, *FP16, *layout)
        np.testing.assert_allclose(losses(run_dir), found, rtol=2e-4)
    succeed(1, recipe, f"run_dir={tmp_path / 'fp32'}", THREE_STEPS, *TOGETHER)
    np.testing.assert_allclose(found, losses(tmp_path / "fp32"), rtol=2e-3)
