"""A chip that rounds the inputs of FP32 products says so at the start; tests/platform counts such products."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.platform.cpu import CpuPlatform
from tests.helpers.training.small_run import TOKENS_PER_STEP, events, fit_here, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("small_run"))


@pytest.mark.parametrize(
    ("overrides", "places", "warns_of"),
    [
        (["train.precision=bf16"], "", None),
        (["train.precision=bf16", "model.fp32_head=true"], "output layer", "model.fp32_head"),
        (["monitor.activations_every_steps=0"], "linear layers, attention, output layer", "train.precision=fp32"),
    ],
    ids=["nothing in FP32", "the head in FP32", "all in FP32"],
)
def test_a_run_names_its_rounded_products(
    overrides: list[str],
    places: str,
    warns_of: str | None,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(CpuPlatform, "products_round_fp32", True)
    fit_here(recipe, f"run_dir={tmp_path}", f"train.train_tokens={TOKENS_PER_STEP}", *overrides)
    (event,) = events(tmp_path, "implementations")
    (row,) = (row for row in event["table"] if row["op"] == "FP32 products")
    assert (row["implementation"], row["why"]) == ("from inputs rounded to FP16" if places else "none", places)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "rounds the inputs of" in line]
    assert [line.startswith(f"warning: {warns_of}: ") for line in warnings] == [True] * (warns_of is not None)
