"""Two optimizers, each of some of the weights, are bitwise one optimizer of all: the same step, state and checkpoints.

Both are AdamW. Overflow is judged over both, with one scale; the gradient has one norm, and is clipped by it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.processes.rank_server import run
from tests.helpers.training.saved_state import load, what_counts
from tests.helpers.training.small_run import TOKENS_PER_STEP, events, metrics, numbers, start_from, succeed, train

STEPS = [f"train.train_tokens={6 * TOKENS_PER_STEP}", "checkpoint.save_every_steps=3"]
WATCHED = "monitor.activations_every_steps=2"
# Too high at first: it is halved, then doubled after each two good steps.
FP16 = ["train.precision=fp16", "optimizer.initial_loss_scale=4194304", "optimizer.loss_scale_window=2"]
SCALED = [*FP16, "optimizer.hysteresis=1"]
PLAIN, TENSOR = "parallel.use_distributed_optimizer=false", "parallel.tensor_model_parallel_size=2"
CLIP = ["model.qk_layernorm=false", "optimizer.qk_clip_tau=0.105"]
LATE = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]

QUICK = {"dp2": (2, SCALED), "one, plain, QK-clip": (1, [*SCALED, *CLIP, PLAIN])}
SLOW = {
    "dp2, FP32, QK-clip": (2, CLIP),
    "dp2, plain": (2, [*SCALED, PLAIN]),
    "dp2, plain, FP32": (2, [PLAIN]),
    "dp2, BF16": (2, ["train.precision=bf16"]),
    "tp2": (2, [*SCALED, TENSOR]),
    "pp2": (2, [*SCALED, "parallel.pipeline_model_parallel_size=2"]),
    "dp2, weights gathered late": (2, [*SCALED, *LATE]),
    "one, FP32": (1, []),
}
LAST = Path("checkpoints") / "step_6"


def two_parts(processes: int, recipe: Path, run_dir: Path, *overrides: str) -> Path:
    program = [Path(__file__).with_name("two_parts.py"), "train", recipe, f"run_dir={run_dir}", *STEPS, *overrides]
    done = run(processes, [*program, "--verbose"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([line for line in done.stderr.splitlines() if line.split()[:1] == ["optimizer"]]) == 2
    return run_dir


def assert_same_run(one: Path, other: Path, *steps: int) -> None:
    for name in ("loss", "grad_norm", "loss_scale", "skipped_steps"):
        assert [metrics(one)[step][name] for step in steps] == [metrics(other)[step][name] for step in steps]
    (tensors, common), (others, other_common) = load(one / LAST), load(other / LAST)
    assert tensors.keys() == others.keys() and [name for name in tensors if not tensors[name].equal(others[name])] == []
    assert common["progress"] == other_common["progress"]
    assert what_counts(common["optimizer"]) == what_counts(other_common["optimizer"])


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_they_are_one(case: str, recipe: Path, tmp_path: Path) -> None:
    """All cases: bash tests/run.sh -m "slow or not slow" tests/train/test_two_parts.py"""
    processes, settings = {**QUICK, **SLOW}[case]
    one, resumed = tmp_path / "one", tmp_path / "resumed"
    succeed(processes, recipe, f"run_dir={one}", *STEPS, WATCHED, *settings)
    two = two_parts(processes, recipe, tmp_path / "two", WATCHED, *settings)
    assert_same_run(one, two, *range(1, 7))
    (expected, found) = ([numbers(event) for event in events(folder, "monitor")] for folder in (one, two))
    assert found == expected and len(found) == 3
    if "train.precision=fp16" in settings:
        assert 0 < metrics(one)[6]["skipped_steps"] < 6
    two_parts(processes, recipe, start_from(two, 3, resumed), *settings)
    assert_same_run(one, resumed, 4, 5, 6)


def test_other_parts_and_ranks_read_their_checkpoints(recipe: Path, tmp_path: Path) -> None:
    """Two parts on two ranks, then one on one without the distributed optimizer, and the other way round."""
    two = two_parts(2, recipe, tmp_path / "two", *SCALED)
    found = {name: start_from(two, 3, tmp_path / f"{name} on one rank") for name in ("one", "two")}
    succeed(1, recipe, f"run_dir={found['one']}", *STEPS, *SCALED, PLAIN)
    two_parts(1, recipe, found["two"], *SCALED, PLAIN)
    assert_same_run(found["one"], found["two"], 4, 5, 6)
    back = two_parts(
        2, recipe, start_from(found["one"], 6, tmp_path / "back"), *SCALED, f"train.train_tokens={8 * TOKENS_PER_STEP}"
    )
    assert max(metrics(back)) == 8


def test_a_rate_of_its_own_is_a_metric(recipe: Path, tmp_path: Path) -> None:
    """Weights of rate 0 keep each bit; those of the others move."""
    rates = ["optimizer.decoupled_lr=1e-3", "optimizer.lr_mult={norms: 0, final_norm: 0}"]
    done = train(1, recipe, f"run_dir={tmp_path}", *STEPS, *rates)
    assert done.returncode == 0, done.stderr
    for row in metrics(tmp_path).values():
        # The highest peak of the small run's phases.
        assert row["lr_embedding"] == row["lr_head"] == pytest.approx(row["lr"] * 1e-3 / 5e-3)
        assert row["lr_norms"] == row["lr_final_norm"] == 0 and "lr_qkv" not in row
    before, after = (load(tmp_path / "checkpoints" / f"step_{step}")[0] for step in (0, 6))
    same = {name for name in before if not name.startswith("optimizer.") and before[name].equal(after[name])}
    assert same == {name for name in before if "norm" in name and not name.startswith("optimizer.")} and same
