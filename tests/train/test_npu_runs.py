"""Whole runs on platform npu over the real torch_npu (`tests/helpers/ascend`), against runs on platform cpu.

Kernels are the host's in both: the same weights and batches must give the same losses, but for where a chip rounds.
FP16 is compared with this CPU's FP16: both multiply in FP32 and round once.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.ascend import machine
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import TOKENS_PER_STEP, events, losses, metrics, start_from
from tests.helpers.training.small_run import succeed as succeed_on_cpu

STEPS = 4
SHORT = [f"train.train_tokens={STEPS * TOKENS_PER_STEP}", "optimizer.initial_loss_scale=1024"]
FP16, BF16, FP32 = (f"train.precision={name}" for name in ("fp16", "bf16", "fp32"))
PLAIN = "parallel.use_distributed_optimizer=false"
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
FULL = "parallel.recompute_granularity=full"
SELECTIVE = ["parallel.recompute_granularity=selective", "parallel.recompute_modules=[core_attn,mlp]"]
DOCUMENTS = ["data.reset_position_ids=true", "data.reset_attention_mask=true"]
CLIP = ["model.qk_layernorm=false", "optimizer.qk_clip_tau=0.01"]
MONITOR = ["monitor.activations_every_steps=1"]
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
FIRST, LATER = "Ascend910A", "Ascend910B2"


def train(recipe: Path, run_dir: Path, *overrides: str, ranks: int = 1, soc: str = FIRST) -> machine.Done:
    """Train on simulated NPUs, which must succeed, with kernels of the device only."""
    command = ["-m", "megatron_kaiyuan.cli", "train", recipe, f"run_dir={run_dir}", "platform=npu", *overrides]
    done = machine.python(*command, ranks=ranks, soc=soc, trial_in_child=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.fallbacks == set()
    return done


def agrees(recipe: Path, folder: Path, *overrides: str, ranks: int = 1, soc: str = FIRST) -> machine.Done:
    """A healthy run whose losses are those of CPU ranks with the same settings."""
    done = train(recipe, folder / "npu", *SHORT, *overrides, ranks=ranks, soc=soc)
    assert done.register == []
    succeed_on_cpu(ranks, recipe, f"run_dir={folder / 'cpu'}", *SHORT, *overrides)
    np.testing.assert_allclose(losses(folder / "npu"), losses(folder / "cpu"), rtol=1e-4)
    return done


def test_one_910a(recipe: Path, tmp_path: Path) -> None:
    """With what runs operators of its own: recomputed layers, documents, clipped heads, tensors that are watched."""
    done = agrees(recipe, tmp_path, FP16, FULL, *DOCUMENTS, *CLIP, *MONITOR)
    assert ("float16",) in done.operators["aten.matmul.default"]
    (utilization,) = events(tmp_path / "npu", "utilization")
    assert (utilization["device"], utilization["peak_tflops"]) == (FIRST, 256)


def test_two_910a(recipe: Path, tmp_path: Path) -> None:
    """The distributed optimizer, with both of its overlaps."""
    done = agrees(recipe, tmp_path, FP16, *OVERLAP, ranks=2)
    # Megatron Core gathers weights in coalesced calls.
    assert any("allgather" in name for name in done.operators)


def test_two_910b(recipe: Path, tmp_path: Path) -> None:
    done = agrees(recipe, tmp_path, BF16, PLAIN, ranks=2, soc=LATER)
    fused = ["aten._fused_adamw_.default", "npu.npu_fusion_attention_v3.default", "npu.npu_rms_norm.default"]
    assert set(fused) <= set(done.operators)


def test_resume_on_a_910a_is_bitwise(recipe: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = [*SHORT, FP16, "checkpoint.save_every_steps=2"]
    train(recipe, whole, *settings)
    start_from(whole, 2, resumed)
    train(recipe, resumed, *settings)
    assert losses(resumed) == losses(whole)[2:]
    mine, theirs = (load(folder / "checkpoints" / f"step_{STEPS}")[0] for folder in (resumed, whole))
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []


def test_an_overflow_on_one_910a_withholds_the_step_of_all(recipe: Path, tmp_path: Path) -> None:
    """A forward pass of step 2 and a backward pass of step 3 on rank 1, to finite numbers: only its register tells.

    With the plain optimizer Megatron Core asks no one of the other data-parallel ranks.
    """
    fault = json.dumps({"rank": 1, "steps": {"2": "forward", "3": "backward"}})
    program = [Path(__file__).with_name("overflowing_train.py"), fault, recipe, f"run_dir={tmp_path}", "platform=npu"]
    settings = [*SHORT, FP16, PLAIN, "optimizer.hysteresis=1", "checkpoint.save_every_steps=1"]
    done = machine.python(*program, *settings, ranks=2, trial_in_child=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.register == ["aten::add"] * 2
    rows = metrics(tmp_path)
    assert [rows[step]["loss_scale"] for step in range(1, STEPS + 1)] == [1024, 1024, 512, 256]
    assert [step for step, row in rows.items() if row["grad_norm"] is None] == [2, 3]
    saved = [load(tmp_path / "checkpoints" / f"step_{step}")[0] for step in range(STEPS + 1)]
    moved = [any(not torch.equal(one[name], other[name]) for name in one) for one, other in itertools.pairwise(saved)]
    assert moved == [True, False, False, True]
    assert all("register" in event["message"] for event in events(tmp_path, "overflow"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "ranks", "soc"),
    [
        ([FP16], 1, FIRST),
        ([FP16, *SELECTIVE], 1, FIRST),
        ([FP16, FULL], 2, FIRST),
        ([FP16, *SELECTIVE, *DOCUMENTS], 2, FIRST),
        ([FP16, PLAIN, *CLIP, *MONITOR], 2, FIRST),
        ([FP16, TENSOR], 2, FIRST),
        ([FP16, TENSOR, "parallel.sequence_parallel=true"], 2, FIRST),
        ([FP16, PIPELINE], 2, FIRST),
        ([FP16, *DOCUMENTS], 2, LATER),
        ([BF16, *SELECTIVE, *CLIP, *MONITOR], 1, LATER),
        ([BF16, FULL, *OVERLAP], 2, LATER),
        ([FP32, PLAIN], 1, LATER),
        ([FP32, *OVERLAP], 2, LATER),
        ([FP32, PIPELINE], 2, LATER),
    ],
    ids=str,
)
def test_other_settings(settings: list[str], ranks: int, soc: str, recipe: Path, tmp_path: Path) -> None:
    """`bash tests/run.sh -m slow tests/train/test_npu_runs.py`"""
    agrees(recipe, tmp_path, *settings, ranks=ranks, soc=soc)
