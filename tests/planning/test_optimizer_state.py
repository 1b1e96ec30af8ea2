"""Planned bytes of the optimizer follow from what it lists as its state."""

from __future__ import annotations

import pytest

from megatron_kaiyuan import optimizers
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.ema import EmaConfig
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning import parameters
from megatron_kaiyuan.planning.memory import stage_memory
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.training.small_recipe import small_run


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize(("precision", "main"), [("fp32", 0), ("fp16", 4)])
def test_an_optimizer_of_one_tensor(
    precision: str, main: int, distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the head: four bytes less for each of its parameters, on the ranks together."""
    run = small_run(train={"precision": precision}, parallel={"use_distributed_optimizer": distributed})
    stage = parameters.PipelineStage(run, 1, 0)
    usual = parameters.held(stage).optimizer
    assert usual == (main + 8) * count_parameters(run.model)

    def other_head(run: RunConfig) -> dict:
        return {**optimizers.rules(run), "head": optimizers.UpdateRule("one")}

    monkeypatch.setitem(optimizers.STATES, "one", ("exp_avg",))
    monkeypatch.setattr(parameters, "rules", other_head)
    head = run.model.padded_vocab_size * run.model.hidden_size
    assert parameters.held(stage).optimizer == usual - 4 * head


@pytest.mark.parametrize(("place", "on_device", "on_host"), [("auto", 4, 4), ("cpu", 0, 8)])
def test_an_average_of_the_weights(place: str, on_device: int, on_host: int) -> None:
    """Four bytes a parameter where it lies, and four of the copy in host memory that a save takes."""
    without = small_run()
    kept = without.model_copy(update={"ema": EmaConfig.model_validate({"decay": 0.9, "device": place})})
    before, now = (stage_memory(parameters.PipelineStage(run, 1, 0), DEVICES["h100"]) for run in (without, kept))
    count = count_parameters(kept.model)
    assert now.device.total - before.device.total == on_device * count
    assert now.device.optimizer - before.device.optimizer == on_device * count
    assert now.host - before.host == on_host * count
