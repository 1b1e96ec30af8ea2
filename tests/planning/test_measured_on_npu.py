"""The plan for a 910A against training on a simulated one, whose allocator is torch_npu's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.planning.memory import stage_memory
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.platform.datasheets import DEVICES
from tests.helpers.ascend import machine
from tests.helpers.training.small_run import write_recipe

SHAPE = [
    *("model.num_layers=2", "model.hidden_size=128", "model.ffn_hidden_size=384", "model.vocab_size=512"),
    *("model.num_attention_heads=8", "model.num_query_groups=4", "model.kv_channels=32"),
    *("train.seq_length=256", "train.micro_batch_size=2", "train.global_batch_size=4", "train.train_tokens=1024"),
    *("monitor.activations_every_steps=0", "optimizer.initial_loss_scale=1024"),
]
FP16, FULL = "train.precision=fp16", "parallel.recompute_granularity=full"
CASES = {
    "none": [FP16],
    "selective": [FP16, "parallel.recompute_granularity=selective", "parallel.recompute_modules=[mlp,core_attn]"],
    "full, documents apart": [FP16, FULL, "data.reset_attention_mask=true"],
    "head in FP32": [FP16, FULL, "model.fp32_head=true"],
    "all in FP32": [],
}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "matmul", "matmul_backward", "linear", "linear_backward"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("small_run"), documents=400)


@pytest.mark.parametrize("case", CASES)
def test_peak_register_and_products(case: str, recipe: Path, tmp_path: Path) -> None:
    """A healthy run: as much memory as planned, no overflow, and products of FP32 where they are said to be."""
    overrides = [f"run_dir={tmp_path / 'run'}", "platform=npu", *SHAPE, *CASES[case]]
    done = machine.python(Path(__file__).with_name("peak_on_npu.py"), recipe, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    (requested,) = map(int, re.findall(r"^requested: (\d+)$", done.stdout, re.M))
    planned = stage_memory(PipelineStage(load_run(recipe, overrides), 1, 0), DEVICES["910a"]).device
    assert planned.total == pytest.approx(requested, rel=0.03)
    assert done.register == [] and done.fallbacks == set()
    products = [types for name, types in done.operators.items() if name.split(".")[1] in PRODUCTS]
    assert products and any(("float32",) in types for types in products) == ("FP32" in case)
