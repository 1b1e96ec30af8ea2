"""QK-clip against a slow one over scores in float64; the same for any layout of ranks, and across a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_kaiyuan.train.session import Session
from tests.helpers.training.saved_state import assert_same_state, load
from tests.helpers.training.small_run import TOKENS_PER_STEP, fit_here, losses, metrics, start_from, succeed

# Among the largest logits of a fresh network's heads: some are clipped, some are not.
TAU = 0.105
PLAIN = ["model.qk_layernorm=false", "monitor.activations_every_steps=0", "checkpoint.save_every_steps=1"]
CLIP = [*PLAIN, f"optimizer.qk_clip_tau={TAU}"]
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
LAYOUTS = {
    "dp2": [],
    "dp2-plain": ["parallel.use_distributed_optimizer=false"],
    "tp2-sequence": [TENSOR, "parallel.sequence_parallel=true"],
    "pp2": [PIPELINE],
}
REST = ("dp2-plain", "pp2")
WEIGHT = "decoder.layers.self_attention.linear_qkv.weight"
HEADS, SIZE = 4, 16


def steps(count: int) -> str:
    return f"train.train_tokens={count * TOKENS_PER_STEP}"


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clipped steps of one process."""
    run_dir = tmp_path_factory.mktemp("clipped") / "run"
    fit_here(recipe, f"run_dir={run_dir}", *CLIP, steps(3))
    return run_dir


def weights(run_dir: Path, step: int, main: bool = True) -> torch.Tensor:
    tensors, _ = load(run_dir / "checkpoints" / f"step_{step}")
    return tensors["optimizer.state.param." * main + WEIGHT]


@pytest.mark.parametrize("precision, groups", [("fp32", 4), ("fp16", 2)])
def test_weights_are_those_of_the_update_scaled_by_head(
    precision: str, groups: int, recipe: Path, tmp_path: Path
) -> None:
    """A step without clip, whose attention inputs are kept; its weights, clipped by hand, against a step with clip."""
    options = [f"model.num_query_groups={groups}", f"train.precision={precision}", steps(1)]
    options += ["optimizer.initial_loss_scale=256"]
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]

    def keep(session: Session) -> None:
        for kept, layer in zip(seen, session.state.network.chunks[0].decoder.layers, strict=True):
            layer.self_attention.core_attention.register_forward_pre_hook(
                lambda module, inputs, kept=kept: kept.append(
                    (inputs[0].detach().double(), inputs[1].detach().double())
                )
            )

    fit_here(recipe, f"run_dir={tmp_path / 'plain'}", *PLAIN, *options, prepare=keep)
    fit_here(recipe, f"run_dir={tmp_path / 'clipped'}", *CLIP, *options)
    expected = weights(tmp_path / "plain", 1).clone()
    clipped, logits = 0, []
    for layer, kept in enumerate(seen):
        assert len(kept) == 4
        for head in range(HEADS):
            group, place = divmod(head, HEADS // groups)
            scores = [torch.einsum("sbd,tbd->bst", query[:, :, head], key[:, :, group]) for query, key in kept]
            visible = torch.ones_like(scores[0][0], dtype=torch.bool).tril()
            largest = max((one / SIZE**0.5)[:, visible].max().item() for one in scores)
            factor = min(1.0, TAU / largest)
            logits.append(largest)
            clipped += factor < 1
            start = group * (HEADS // groups + 2) * SIZE
            query_rows = slice(start + place * SIZE, start + (place + 1) * SIZE)
            key_rows = slice(start + HEADS // groups * SIZE, start + (HEADS // groups + 1) * SIZE)
            expected[layer, query_rows] *= factor**0.5 if groups == HEADS else factor
            if groups == HEADS:
                expected[layer, key_rows] *= factor**0.5
    assert 0 < clipped < 2 * HEADS
    assert metrics(tmp_path / "clipped")[1]["attention/largest_logit"] == pytest.approx(max(logits), rel=1e-2)
    found = weights(tmp_path / "clipped", 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert torch.equal(
        weights(tmp_path / "clipped", 1, main=False),
        found.to(getattr(torch, "float16" if precision == "fp16" else "float32")),
    )


@pytest.mark.parametrize(
    "layout", ["dp2", "tp2-sequence", *(pytest.param(one, marks=pytest.mark.slow) for one in REST)]
)
def test_the_layout_of_ranks_changes_nothing(layout: str, recipe: Path, alone: Path, tmp_path: Path) -> None:
    """All layouts: python -m pytest tests/train/hooks/test_qk_clip.py -m "slow or not slow"."""
    run_dir = start_from(alone, 0, tmp_path)
    succeed(2, recipe, f"run_dir={run_dir}", *CLIP, *LAYOUTS[layout], steps(3))
    np.testing.assert_allclose(losses(run_dir), losses(alone), rtol=2e-6)
    torch.testing.assert_close(weights(run_dir, 3), weights(alone, 3), rtol=1e-3, atol=1e-5)


def test_a_restart_changes_no_bit(recipe: Path, alone: Path, tmp_path: Path) -> None:
    run_dir = start_from(alone, 2, tmp_path)
    succeed(1, recipe, f"run_dir={run_dir}", *CLIP, steps(3))
    assert_same_state(run_dir / "checkpoints" / "step_3", alone / "checkpoints" / "step_3")
