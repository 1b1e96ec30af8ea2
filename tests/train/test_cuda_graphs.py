"""Played passes give the bits of megatron-core's schedule; here a capture is the function itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kaiyuan import platform
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here, losses, metrics, train

STEPS = 8
# In torch's kernels documents have a mask, which is made once for all layers.
APART = ["data.reset_attention_mask=true", "data.eod_mask_loss=true"]
SHORT = f"train.train_tokens={STEPS * TOKENS_PER_STEP}"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A CPU that claims to capture; its list grows by one with each micro-batch that is played."""
    device: Any = platform.activate("cpu")
    counted: list[int] = []

    def capture(function: Any) -> Any:
        function()

        def play() -> Any:
            counted.append(1)
            return function()

        return play

    monkeypatch.setattr(device, "captures", True)
    monkeypatch.setattr(device, "capture", capture)
    return counted


@pytest.mark.parametrize("settings", [[], ["train.precision=fp16", "optimizer.initial_loss_scale=1024"]], ids=str)
@pytest.mark.parametrize("masks", [[], [*APART, "backend.document_attention=torch"], APART], ids=str)
def test_the_same_bits(settings: list[str], masks: list[str], recipe: Path, played: list[int], tmp_path: Path) -> None:
    common = [SHORT, "train.micro_batch_size=1", "monitor.activations_every_steps=5", *settings, *masks]
    expected = fit_here(recipe, f"run_dir={tmp_path / 'expected'}", *common)
    assert played == []
    session = fit_here(recipe, f"run_dir={tmp_path / 'played'}", "backend.passes=cuda_graphs", *common)
    # The first two warm up, and the fifth is watched.
    micro_batches = session.run.train.global_batch_size
    assert len(played) == (STEPS - 3) * micro_batches
    assert losses(tmp_path / "played") == losses(tmp_path / "expected")
    for mine, theirs in zip(session.state.network.parameters(), expected.state.network.parameters(), strict=True):
        assert mine.equal(theirs)


def test_what_cannot_be_recorded_is_refused(recipe: Path, tmp_path: Path) -> None:
    done = train(1, recipe, f"run_dir={tmp_path}", "backend.passes=cuda_graphs")
    assert done.returncode == 2
    assert "backend.passes: cuda_graphs is nothing that platform cpu does; use auto or torch" in done.stderr


def test_passes_that_record_metrics_are_not_played(
    recipe: Path, played: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_kaiyuan.metrics import record
    from megatron_kaiyuan.train import step

    real_loss = step._mean_loss

    def mean_loss(*arguments: Any) -> Any:
        record("model/passes", 1, "sum")
        return real_loss(*arguments)

    monkeypatch.setattr(step, "_mean_loss", mean_loss)
    fit_here(recipe, f"run_dir={tmp_path}", "backend.passes=cuda_graphs", SHORT)
    assert played == []
    assert [row["model/passes"] for row in metrics(tmp_path).values()] == [4] * STEPS
