"""The same run on one GPU: `bash tests/run.sh -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.training.small_run import launch, losses, start_from

pytestmark = pytest.mark.gpu


def succeed(recipe: Path, *overrides: Any) -> None:
    """Train on one GPU in a fresh process: forks would have a platform already."""
    done = launch(1, ["-m", "megatron_kaiyuan.cli", "train", recipe, "platform=cuda", *overrides])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.03), ("fp16", 0.03)])
def test_losses_follow_those_of_the_cpu(
    precision: str, tolerance: float, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """From the same initial weights; FP16 starts from a scale that needs no search."""
    overrides = [f"run_dir={tmp_path}", f"train.precision={precision}"]
    if precision == "fp32":
        start_from(finished_run, 0, tmp_path)
    succeed(recipe, *overrides, "optimizer.initial_loss_scale=1024")
    np.testing.assert_allclose(losses(tmp_path), losses(finished_run), rtol=tolerance)


def test_resume_on_the_gpu_is_bitwise(recipe: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    succeed(recipe, f"run_dir={whole}")
    start_from(whole, 10, resumed)
    succeed(recipe, f"run_dir={resumed}")
    assert losses(resumed) == losses(whole)[10:]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_libraries_agree(precision: str, recipe: Path, tmp_path: Path) -> None:
    """Losses with torch's kernels, compiled ones and, where it is installed, Liger's, from the same weights."""
    scaler = ["optimizer.initial_loss_scale=1024"]
    found = {}
    for library in ("torch", "compiled", "liger"):
        if library == "liger":
            pytest.importorskip("liger_kernel")
        settings = [f"backend.{name}={library}" for name in ("norm", "swiglu")]
        if library != "liger":
            settings += [f"backend.{name}={library}" for name in ("rope", "loss")]
        settings += [f"backend.weight_gradient={'torch' if library == 'torch' else 'fused'}"]
        succeed(recipe, f"run_dir={tmp_path / library}", f"train.precision={precision}", *scaler, *settings)
        found[library] = losses(tmp_path / library)
        np.testing.assert_allclose(found[library], found["torch"], rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_flex_attention_keeps_documents_apart(dtype: torch.dtype) -> None:
    """Values and gradients of grouped heads, against a mask in float64."""
    from megatron_kaiyuan.backend.attention import flex_attention, torch_attention

    drawn = torch.Generator().manual_seed(0)
    shapes = [(512, 2, heads, 64) for heads in (4, 2, 2, 4)]
    leaves = [torch.randn(shape, generator=drawn).to("cuda", dtype).requires_grad_() for shape in shapes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    documents = (torch.arange(512) // 150).expand(2, -1).cuda()
    results = []
    for kernel, tensors in ((flex_attention, leaves), (torch_attention, exact)):
        query, key, value, weights = (tensor.permute(1, 2, 0, 3) for tensor in tensors)
        output = kernel(query, key, value, None, documents)
        results.append([output, *torch.autograd.grad(output, tensors[:3], weights)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_adds_itself_to_an_fp32_sum(dtype: torch.dtype) -> None:
    from megatron_kaiyuan.platform.cuda_kernels import accumulate

    drawn = torch.Generator().manual_seed(0)
    values, gradient = (torch.randn(512, size, generator=drawn).to("cuda", dtype) for size in (96, 160))
    total = torch.randn(160, 96, generator=drawn).cuda()
    expected = total.double() + gradient.double().t() @ values.double()
    accumulate(values, gradient, total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_step_waits_for_the_gpu_in_one_place_only(recipe: Path, tmp_path: Path) -> None:
    """Loss, loss scale and gradient norm, one behind the other, whose work was queued long before."""
    program = [Path(__file__).with_name("count_waits.py"), "train", recipe, f"run_dir={tmp_path}", "platform=cuda"]
    done = launch(1, [*program, "train.precision=bf16"])
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.startswith("waits")]
    # The first ones allocate.
    assert len(told) > 5 and max(int(line.split()[1]) for line in told[2:]) <= 4, told[-1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_recorded_passes(precision: str, recipe: Path, tmp_path: Path) -> None:
    """CUDA graphs: the losses of a run without them, also behind a watched step."""
    settings = [
        f"train.precision={precision}",
        "optimizer.initial_loss_scale=1024",
        "monitor.activations_every_steps=7",
    ]
    for passes in ("torch", "cuda_graphs"):
        succeed(recipe, f"run_dir={tmp_path / passes}", f"backend.passes={passes}", *settings)
    np.testing.assert_allclose(losses(tmp_path / "cuda_graphs"), losses(tmp_path / "torch"), rtol=0.005)
