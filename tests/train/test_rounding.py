"""A line at the start where FP32 is asked for and a device multiplies in less."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.platform.cpu import CpuPlatform
from megatron_kaiyuan.train.rounding import rounding_warning


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (["train.precision=fp32"], "train.precision=fp32"),
        (["train.precision=fp16", "model.fp32_head=true"], "model.fp32_head"),
        (["train.precision=fp32", "model.fp32_head=true"], "train.precision=fp32 and model.fp32_head"),
        (["train.precision=fp16"], None),
    ],
)
def test_fields_that_promise_more(settings: list[str], fields: str | None, recipe: Path) -> None:
    run, device = load_run(recipe, settings), CpuPlatform()
    assert rounding_warning(run, device) is None
    device.products_round_fp32 = True
    warning = rounding_warning(run, device)
    assert (warning and warning.partition(":")[0]) == fields
