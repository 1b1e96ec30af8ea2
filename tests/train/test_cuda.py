"""The same run on one GPU: `bash tests/run.sh -m gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_run import losses, start_from, succeed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03), ("fp16", 0.03)])
def test_losses_follow_those_of_the_cpu(
    precision: str, tolerance: float, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """From the same initial weights; FP16 starts from a scale that needs no search."""
    overrides = [f"run_dir={tmp_path}", "platform=cuda", f"train.precision={precision}"]
    if precision == "fp32":
        start_from(finished_run, 0, tmp_path)
    succeed(1, recipe, *overrides, "optimizer.initial_loss_scale=1024")
    np.testing.assert_allclose(losses(tmp_path), losses(finished_run), rtol=tolerance)


def test_resume_on_the_gpu_is_bitwise(recipe: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    succeed(1, recipe, f"run_dir={whole}", "platform=cuda")
    start_from(whole, 10, resumed)
    succeed(1, recipe, f"run_dir={resumed}", "platform=cuda")
    assert losses(resumed) == losses(whole)[10:]
