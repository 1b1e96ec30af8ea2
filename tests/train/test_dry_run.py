"""`kaiyuan train --dry-run` against what the plan computes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.planning.parameters import distinct_stages, held
from megatron_kaiyuan.train.dry_run import count
from tests.helpers.processes.rank_server import run

RECIPE = Path(__file__).parents[2] / "launch/recipes/kaiyuan-2b/train.yaml"
# Few layers, and sizes that are no multiples of what megatron-core pads to.
ODD = ["model.num_layers=6", "model.hidden_size=260", "model.ffn_hidden_size=204", "model.kv_channels=18"]
ODD += ["model.vocab_size=1000", "train.global_batch_size=840"]
PLAIN = ["parallel.use_distributed_optimizer=false", "parallel.overlap_param_gather=false"]
CASES = {
    "one": (1, ["train.precision=fp32"]),
    "dp6": (6, []),
    "dp5, plain optimizer": (5, PLAIN),
    "dp7, fp32, plain optimizer": (7, [*PLAIN, "train.precision=fp32"]),
    "tp2 dp3": (6, ["parallel.tensor_model_parallel_size=2", "train.precision=bf16"]),
    "tp4 sp pp3 dp5": (
        60,
        [
            "parallel.tensor_model_parallel_size=4",
            "parallel.sequence_parallel=true",
            "parallel.pipeline_model_parallel_size=3",
        ],
    ),
    "pp6 dp4, fp32": (24, ["parallel.pipeline_model_parallel_size=6", "train.precision=fp32"]),
    "pp3 vp2 dp4": (
        12,
        ["parallel.pipeline_model_parallel_size=3", "parallel.virtual_pipeline_model_parallel_size=2"],
    ),
    "dp3, average": (3, ["ema.decay=0.9"]),
    "dp3, plain optimizer, average on the host": (3, [*PLAIN, "ema.decay=0.9", "ema.device=cpu"]),
    "dp3, average on the host": (3, ["ema.decay=0.9", "ema.device=cpu"]),
    "embedding norm": (2, ["model.embedding_norm=true"]),
    "plain network": (
        2,
        ["model.sandwich_norm=false", "model.qk_layernorm=false", "model.logits_soft_cap=null"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_real_tensors_have_the_planned_bytes(case: str) -> None:
    """Exactly, for the first rank of each kind of stage."""
    world_size, overrides = CASES[case]
    stages = distinct_stages(load_run(RECIPE, [*ODD, *overrides]), world_size)
    for stage in stages:
        assert count(stage) == held(stage)


@pytest.mark.parametrize("overlap", [False, True])
def test_several_buckets_at_full_size(overlap: bool) -> None:
    both = [f"parallel.overlap_{what}={str(overlap).lower()}" for what in ("grad_reduce", "param_gather")]
    overrides = ["parallel.pipeline_model_parallel_size=2", *both]
    for stage in distinct_stages(load_run(RECIPE, overrides), 48):
        assert count(stage) == held(stage)


def test_the_command_at_a_size_that_is_not_there() -> None:
    done = _train("--dry-run", "--world-size", "1024", "parallel.pipeline_model_parallel_size=4")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[:3] for row in rows[1:4]] == [["0", "first", "0"], ["1", "middle", "256"], ["3", "last", "768"]]
    assert rows[-1].startswith("dry run: 1024 processes, tensor 1 x pipeline 4 x data 256, 8 micro-batches of 1")


def test_a_world_that_does_not_fit_is_refused() -> None:
    done = _train("--dry-run", "--world-size", "6")
    assert done.returncode == 2
    assert "train.global_batch_size 2048 is not a multiple" in done.stderr and len(done.stderr.splitlines()) == 1


def _train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(1, ["-m", "megatron_kaiyuan.cli", "train", RECIPE, *arguments])
