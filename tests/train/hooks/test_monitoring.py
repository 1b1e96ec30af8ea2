"""The figures of the monitor: the same for any layout of ranks, those of the weights on disk, and harmless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.monitor.tensors import activation_places
from megatron_kaiyuan.report import build_report
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    events,
    fit_here,
    losses,
    metrics,
    numbers,
    start_from,
    succeed,
)

STEPS = [f"train.train_tokens={4 * TOKENS_PER_STEP}", "monitor.activations_every_steps=2"]
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
LAYOUTS = {
    "dp2": (2, []),
    "dp2-plain": (2, ["parallel.use_distributed_optimizer=false"]),
    "tp2-sequence": (2, [TENSOR, "parallel.sequence_parallel=true"]),
    "tp2": (2, [TENSOR]),
    "pp2": (2, [PIPELINE]),
    "tp2-pp2": (4, [TENSOR, PIPELINE]),
    "recompute-full": (1, ["parallel.recompute_granularity=full"]),
    "recompute-parts": (
        1,
        ["parallel.recompute_granularity=selective", "parallel.recompute_modules=[core_attn,mlp]"],
    ),
}
DEFAULT = ("dp2", "tp2-sequence", "pp2", "recompute-full", "recompute-parts")


@pytest.fixture(scope="module")
def alone(recipe: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of one process, of which the second and the fourth are watched; all are saved."""
    run_dir = start_from(finished_run, 0, tmp_path_factory.mktemp("alone"))
    fit_here(recipe, f"run_dir={run_dir}", *STEPS, "checkpoint.save_every_steps=1")
    return run_dir


@pytest.mark.parametrize(
    "layout", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_figures_are_those_of_one_process(
    layout: str, recipe: Path, finished_run: Path, alone: Path, tmp_path: Path
) -> None:
    """All layouts: python -m pytest tests/train/hooks/test_monitoring.py -m "slow or not slow"."""
    processes, overrides = LAYOUTS[layout]
    run_dir = start_from(finished_run, 0, tmp_path)
    succeed(processes, recipe, f"run_dir={run_dir}", *STEPS, *overrides)
    expected, found = events(alone, "monitor"), events(run_dir, "monitor")
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [2, 4]
    for row, other in zip(found, expected, strict=True):
        mine, theirs = numbers(row), numbers(other)
        assert mine.keys() == theirs.keys() and len(mine) > 100 and None not in mine.values()
        np.testing.assert_allclose([*mine.values()], [theirs[name] for name in mine], rtol=2e-3, err_msg=layout)


def test_losses_are_bitwise_those_without_it(recipe: Path, finished_run: Path, alone: Path, tmp_path: Path) -> None:
    run_dir = start_from(finished_run, 0, tmp_path)
    session = fit_here(recipe, f"run_dir={run_dir}", *STEPS, "monitor.activations_every_steps=0")
    assert losses(run_dir) == losses(alone) and len(losses(run_dir)) == 4
    one, other = (load(folder / "checkpoints" / "step_4")[0] for folder in (run_dir, alone))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert events(run_dir, "monitor") == []
    assert "Monitoring" not in {type(hook).__name__ for hook in session.hooks}


def test_every_tensor_of_every_layer_is_there(alone: Path) -> None:
    model = ModelConfig(preset="kaiyuan-tiny", num_layers=2)  # type: ignore[call-arg]
    for row in events(alone, "monitor"):
        assert {name: len(figures["max"]) for name, figures in row["activations"].items()} == activation_places(model)
        for name, figures in row["activations"].items():
            known = {"max", "headroom_bits"} if name == "attention_logits" else {"l1", "rms", "max", "headroom_bits"}
            assert figures.keys() == known
            np.testing.assert_allclose(figures["headroom_bits"], np.log2(65504 / np.array(figures["max"])), rtol=1e-3)
        assert row["tokens"] == row["step"] * TOKENS_PER_STEP


def test_gradients_and_updates_are_those_of_the_weights_on_disk(alone: Path) -> None:
    """The update is the difference of two checkpoints; the gradient follows from their first moments."""
    for row in events(alone, "monitor"):
        before, after = (load(alone / "checkpoints" / f"step_{step}")[0] for step in (row["step"] - 1, row["step"]))
        clipped = min(1.0, 1.0 / (metrics(alone)[row["step"]]["grad_norm"] + 1e-6))
        squares: dict[str, Any] = {}
        for name in after:
            if not name.startswith("optimizer.state.param."):
                continue
            weight = name.removeprefix("optimizer.state.param.")
            moment = f"optimizer.state.exp_avg.{weight}"
            gradient = (after[moment].double() - 0.9 * before[moment].double()) / 0.1 / clipped
            stacked = [gradient, after[name].double() - before[name].double(), after[name].double()]
            layers = weight.startswith("decoder.layers.")
            sums = np.stack([
                (part.square().flatten(1).sum(1) if layers else part.square().sum()[None]).numpy() for part in stacked
            ])  # fmt: skip
            squares[kind(weight)] = squares.get(kind(weight), 0) + sums
        assert squares.keys() == row["gradients"].keys()
        for name, (gradients, updates, weights) in squares.items():
            np.testing.assert_allclose(row["gradients"][name]["norm"], np.sqrt(gradients), rtol=2e-3, err_msg=name)
            np.testing.assert_allclose(
                row["update_to_weight"][name], np.sqrt(updates / weights), rtol=2e-3, err_msg=name
            )
        total = np.sqrt(sum(gradients.sum() for gradients, _, _ in squares.values()))
        np.testing.assert_allclose(metrics(alone)[row["step"]]["grad_norm"], total, rtol=1e-3)


def kind(weight: str) -> str:
    for part, name in (
        *(("embedding", "embedding"), ("output_layer", "head"), ("final_layernorm", "final_norm")),
        *(("norm", "norms"), ("linear_qkv", "qkv"), ("linear_proj", "proj"), ("fc1", "fc1"), ("fc2", "fc2")),
    ):
        if part in weight:
            return name
    raise AssertionError(weight)


def test_the_report_shows_it(alone: Path, tmp_path: Path) -> None:
    page = build_report(alone, tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Headroom by layer", "Residual stream by layer", "Headroom by tensor", "Updates"):
        assert f">{title}<" in page
    assert "bits of headroom, least" in page


def test_fp16_is_watched_and_told_of_once(recipe: Path, tmp_path: Path) -> None:
    """A first scale so high that step 1 overflows: its activations are there, its gradients and update are not."""
    fp16 = ["train.precision=fp16", "optimizer.initial_loss_scale=4294967296", "optimizer.hysteresis=1"]
    every = ["monitor.activations_every_steps=1", "monitor.headroom_warning_bits=14"]
    fit_here(recipe, f"run_dir={tmp_path}", *STEPS, *fp16, *every)
    first = events(tmp_path, "monitor")[0]
    assert metrics(tmp_path)[1]["grad_norm"] is None
    assert None not in numbers({"activations": first["activations"]}).values()
    assert first["update_to_weight"] is None and None in first["gradients"]["head"]["norm"]
    told = events(tmp_path, "headroom_warning")
    assert any(warning["message"].startswith("residual of layer ") for warning in told)
    # A tensor that stays where it is is told of once.
    tensors = [warning["message"].split()[0] for warning in told]
    assert len(tensors) == len(set(tensors))


def test_other_precisions_have_the_figures_and_no_warning(alone: Path) -> None:
    assert (
        min(number for row in events(alone, "monitor") for number in row["activations"]["residual"]["headroom_bits"])
        < 16
    )
    assert events(alone, "headroom_warning") == []
