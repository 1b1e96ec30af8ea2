"""Communicators of a rank, against the groups in which four real ranks communicate while they train and save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.planning.communicators import communicator_buffers, communicators, neighbours
from megatron_kaiyuan.planning.memory import stage_memory
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.processes.rank_server import run as run_ranks
from tests.helpers.training.small_recipe import small_run
from tests.helpers.training.small_run import TOKENS_PER_STEP, write_recipe

RANKS = 4
MIB = 1 << 20
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
PLAIN = "parallel.use_distributed_optimizer=false"
FAST = {
    "tp2-dp2": [TENSOR],
    "pp2-dp2-plain-qk-clip": [PIPELINE, PLAIN, "model.qk_layernorm=false", "optimizer.qk_clip_tau=100"],
}
SLOW = {
    "dp4": [],
    "dp4-plain, end of documents apart": [PLAIN, "data.eod_mask_loss=true"],
    "tp2-pp2-sequence": [TENSOR, PIPELINE, "parallel.sequence_parallel=true"],
    "pp2-virtual2-dp2": [PIPELINE, "parallel.virtual_pipeline_model_parallel_size=2"],
    "pp4-virtual2, fp16": [
        "parallel.pipeline_model_parallel_size=4",
        "parallel.virtual_pipeline_model_parallel_size=2",
        "train.precision=fp16",
        "optimizer.initial_loss_scale=1024",
    ],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("small_run"), save_every_steps=1)


@pytest.mark.parametrize("layout", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_groups_that_communicate(layout: str, recipe: Path, tmp_path: Path) -> None:
    shape = ["model.num_layers=8", f"train.train_tokens={2 * TOKENS_PER_STEP}", "monitor.activations_every_steps=1"]
    overrides = [f"run_dir={tmp_path / 'run'}", *shape, *{**FAST, **SLOW}[layout]]
    program = ["-m", "tests.planning.communicating_rank", recipe, tmp_path, *overrides]
    done = run_ranks(RANKS, program)
    assert done.returncode == 0, done.stderr[-3000:]
    planned = load_run(recipe, overrides)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        stage = PipelineStage(planned, RANKS, rank * planned.parallel.pipeline_model_parallel_size // RANKS)
        assert found["groups"] == sorted(communicators(stage))
        assert len(found["peers"]) == neighbours(stage)


def test_an_npu_keeps_two_buffers_for_each() -> None:
    """Of two stages: all ranks, data-parallel ones, those of the optimizer, and neighbours."""
    run = small_run(parallel={"pipeline_model_parallel_size": 2})
    stage = PipelineStage(run, 8, 0)
    assert communicator_buffers(stage, DEVICES["910a"]) == 4 * 400 * MIB
    assert communicator_buffers(PipelineStage(run, 2, 0), DEVICES["910a"]) == 3 * 400 * MIB
    assert communicator_buffers(PipelineStage(small_run(), 1, 0), DEVICES["910a"]) == 0
    assert communicator_buffers(stage, DEVICES["h100"]) == 0
    other, npu = (stage_memory(stage, DEVICES[name]).device for name in ("h100", "910b"))
    assert npu.buffers - other.buffers == 4 * 400 * MIB
