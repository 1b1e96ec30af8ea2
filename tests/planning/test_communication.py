"""Bytes that ranks send, against every call of torch.distributed in a training step of four real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.planning.communication import Communication, communication, most_sent
from megatron_kaiyuan.planning.parameters import PipelineStage
from tests.helpers.processes.rank_server import run as run_ranks
from tests.helpers.training.small_recipe import KAIYUAN_2B, small_run
from tests.helpers.training.small_run import TOKENS_PER_STEP, write_recipe

RANKS = 4
KINDS = ("tensor", "pipeline", "gradients", "weights")
# Loss and votes, gradient norm, the scaler's flag; each an all-reduce of some numbers, at most twice what it holds.
SMALL = 128


def tensor(ranks: int) -> str:
    return f"parallel.tensor_model_parallel_size={ranks}"


def pipeline(ranks: int) -> str:
    return f"parallel.pipeline_model_parallel_size={ranks}"


SEQUENCE, PLAIN = "parallel.sequence_parallel=true", "parallel.use_distributed_optimizer=false"
VIRTUAL = [pipeline(2), "parallel.virtual_pipeline_model_parallel_size=2"]
FULL, OVERLAP = "parallel.recompute_granularity=full", "parallel.overlap_grad_reduce=true"
MLP = ["parallel.recompute_granularity=selective", "parallel.recompute_modules=[mlp,core_attn]"]
BF16, FP16 = "train.precision=bf16", ["train.precision=fp16", "optimizer.initial_loss_scale=1024"]
IN_FP32 = ["model.fp32_residual=true", "model.fp32_head=true", "model.embedding_norm=true", "train.z_loss=1e-4"]
BARE = ["model.qk_layernorm=false", "model.sandwich_norm=false"]

FAST = {
    "tp2-sequence-dp2, bf16": [tensor(2), SEQUENCE, BF16],
    "pp2-virtual2-dp2-plain-full": [*VIRTUAL, PLAIN, FULL],
    "tp4-full": [tensor(4), FULL],
}
SLOW = {
    "dp4": [],
    "dp4, fp16": FP16,
    "dp4-plain": [PLAIN],
    "dp4-overlap": [OVERLAP],
    "pp2-virtual2-dp2, weights gathered late": [*VIRTUAL, OVERLAP, "parallel.overlap_param_gather=true"],
    "tp4": [tensor(4)],
    "tp4-sequence-full": [tensor(4), SEQUENCE, FULL],
    "tp4-sequence-mlp, bf16, stabilisers": [tensor(4), SEQUENCE, *MLP, BF16, *IN_FP32],
    "tp2-dp2-mlp, bf16, stabilisers, bare layers": [tensor(2), *MLP, BF16, *IN_FP32, *BARE],
    "pp4": [pipeline(4)],
    "pp4-full, micro-batches of 1, fp16": [pipeline(4), FULL, "train.micro_batch_size=1", *FP16],
    "pp2-virtual2-dp2, bf16": [*VIRTUAL, BF16],
    "tp2-pp2-sequence": [tensor(2), pipeline(2), SEQUENCE],
    "tp2-pp2-virtual2, bf16, stabilisers": [tensor(2), *VIRTUAL, BF16, *IN_FP32],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("small_run"))


@pytest.mark.parametrize("layout", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_byte_of_a_step_is_planned(layout: str, recipe: Path, tmp_path: Path) -> None:
    """All layouts, a minute: python -m pytest tests/planning/test_communication.py -m "slow or not slow"."""
    shape = ["model.num_layers=4", "model.num_query_groups=4", f"train.train_tokens={TOKENS_PER_STEP}"]
    overrides = [f"run_dir={tmp_path / 'run'}", *shape, *{**FAST, **SLOW}[layout]]
    program = ["-m", "tests.helpers.processes.counting_rank", recipe, tmp_path, *overrides]
    done = run_ranks(RANKS, program)
    assert done.returncode == 0, done.stderr[-3000:]
    planned = load_run(recipe, overrides)
    for rank in range(RANKS):
        counted = json.loads((tmp_path / f"{rank}.json").read_text())
        found = Communication(*(counted["bytes"].get(kind, 0) for kind in KINDS))
        stage = PipelineStage(planned, RANKS, rank * planned.parallel.pipeline_model_parallel_size // RANKS)
        assert found == communication(stage)
        assert 0 < counted["bytes"].get("small", 0) < SMALL and not any(counted["others"].values())


def test_one_device_sends_nothing() -> None:
    assert most_sent(small_run(), 1) == Communication(0, 0, 0, 0)


def test_most_of_each_kind_over_all_stages() -> None:
    run = small_run(parallel={"pipeline_model_parallel_size": 4, "tensor_model_parallel_size": 2})
    stages = [communication(PipelineStage(run, 16, index)) for index in range(4)]
    assert most_sent(run, 16) == Communication(*(max(getattr(sent, kind) for sent in stages) for kind in KINDS))


@pytest.mark.parametrize("gpus", [64, 256, 1024])
def test_kaiyuan_2b_on_paper(gpus: int) -> None:
    """By hand: 28 layers of 2,048, 8,388,608 tokens a step in FP16; gradients in FP32."""
    run = load_run(Path(KAIYUAN_2B), [tensor(2), pipeline(2)])
    stage = PipelineStage(run, gpus, 1)
    tokens = 2048 * 4096 // (gpus // 4)
    message = tokens * 2048 * 2
    # Of two ranks each sends the message of an all-reduce once: four a layer, one of the head, of the cross-entropy's
    # three numbers a token, of the gradients of query and key norms.
    of_tensor = (4 * 14 + 1) * message + 3 * tokens * 4 + 14 * 2 * 128 * 4
    assert communication(stage).tensor == of_tensor
    assert communication(stage).pipeline == message
    share = (gpus // 4 - 1) / (gpus // 4)
    # Padding apart.
    assert communication(stage).data == pytest.approx(2_031_854_592 / 4 * (4 + 2) * share, rel=0.001)
