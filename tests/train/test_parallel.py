"""The layout of ranks does not change what is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.processes.rank_server import run
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    events,
    fit_here,
    losses,
    metrics,
    numbers,
    start_from,
    succeed,
    train,
)

# Four layers and four groups of keys, so that both can be cut in four.
SHAPE = ["model.num_layers=4", "model.num_query_groups=4"]
STEPS = [f"train.train_tokens={5 * TOKENS_PER_STEP}", "monitor.activations_every_steps=5", *SHAPE]
SEQUENCE, PLAIN = "parallel.sequence_parallel=true", "parallel.use_distributed_optimizer=false"
FULL, PARTS = "parallel.recompute_granularity=full", "parallel.recompute_granularity=selective"
PARTS_ALL = "parallel.recompute_modules=[core_attn,mlp]"


def tensor(ranks: int) -> str:
    return f"parallel.tensor_model_parallel_size={ranks}"


def pipeline(ranks: int) -> str:
    return f"parallel.pipeline_model_parallel_size={ranks}"


VIRTUAL = [pipeline(2), "parallel.virtual_pipeline_model_parallel_size=2"]
LATE = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]


FAST = {
    "dp2-overlap": (2, ["parallel.overlap_grad_reduce=true"]),
    "tp2-sequence": (2, [tensor(2), SEQUENCE]),
    "tp4": (4, [tensor(4)]),
    "pp4": (4, [pipeline(4)]),
    "tp2-pp2-sequence-full": (4, [tensor(2), pipeline(2), SEQUENCE, FULL]),
    "pp2-virtual2": (2, VIRTUAL),
    "dp2-plain-parts": (2, [PLAIN, PARTS, PARTS_ALL]),
    "micro-batches of 4": (1, ["train.micro_batch_size=4"]),
}
SLOW = {
    "dp2": (2, []),
    "dp4-plain": (4, [PLAIN]),
    "tp2": (2, [tensor(2)]),
    "tp4-sequence": (4, [tensor(4), SEQUENCE]),
    "pp2": (2, [pipeline(2)]),
    "pp2-plain": (2, [pipeline(2), PLAIN]),
    "tp2-pp2": (4, [tensor(2), pipeline(2)]),
    "tp2-dp2-sequence-plain": (4, [tensor(2), SEQUENCE, PLAIN]),
    "pp2-dp2": (4, [pipeline(2)]),
    "tp2-sequence-parts": (2, [tensor(2), SEQUENCE, PARTS, PARTS_ALL]),
    "tp4-full": (4, [tensor(4), FULL]),
    "pp4-full": (4, [pipeline(4), FULL]),
    "pp2-parts": (2, [pipeline(2), PARTS]),
    "pp4, micro-batches of 1": (4, [pipeline(4), "train.micro_batch_size=1"]),
    "tp2-pp2-virtual2-sequence-full": (4, [tensor(2), *VIRTUAL, SEQUENCE, FULL]),
    "pp2-virtual2-dp2-overlap": (4, [*VIRTUAL, "parallel.overlap_grad_reduce=true"]),
    "pp2-virtual2-dp2, weights gathered late": (4, [*VIRTUAL, *LATE]),
    "tp2-dp2-sequence, weights gathered late": (4, [tensor(2), SEQUENCE, *LATE]),
    "pp2-virtual2-dp2-plain-parts": (4, [*VIRTUAL, PLAIN, PARTS, PARTS_ALL]),
    "pp2-virtual2, micro-batches of 1": (2, [*VIRTUAL, "train.micro_batch_size=1"]),
    "pp2-virtual2, two micro-batches": (2, [*VIRTUAL, "train.micro_batch_size=4"]),
    "micro-batches of 8": (1, ["train.micro_batch_size=8"]),
    "dp2, micro-batches of 1": (2, ["train.micro_batch_size=1"]),
}


@pytest.fixture(scope="module")
def five_steps(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of one process; the initial weights of all layouts are its step 0."""
    run_dir = tmp_path_factory.mktemp("one_process")
    succeed(1, recipe, f"run_dir={run_dir}", *STEPS)
    return run_dir


@pytest.mark.parametrize("layout", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_losses_are_those_of_one_process(layout: str, recipe: Path, five_steps: Path, tmp_path: Path) -> None:
    """All layouts, two minutes: python -m pytest tests/train/test_parallel.py -m "slow or not slow"."""
    processes, overrides = {**FAST, **SLOW}[layout]
    run_dir = start_from(five_steps, 0, tmp_path)
    done = train(processes, recipe, f"run_dir={run_dir}", *STEPS, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    # Megatron Core's advice on a device that is not here.
    assert "CUDA" not in done.stderr
    assert len(losses(run_dir)) == 5
    np.testing.assert_allclose(losses(run_dir), losses(five_steps), rtol=2e-6)
    (found,), (expected,) = (map(numbers, events(folder, "monitor")) for folder in (run_dir, five_steps))
    np.testing.assert_allclose([*found.values()], [expected[name] for name in found], rtol=2e-3)


@pytest.mark.parametrize("settings", [[], ["model.fp32_head=true", "train.precision=bf16"]], ids=["fp32", "fp32 head"])
def test_weights_that_are_gathered_late_are_the_same_bits(settings: list[str], recipe: Path, tmp_path: Path) -> None:
    """Over buckets of a few parameters each, on checkpoints in between, watched weights and a resume."""
    program = [Path(__file__).with_name("small_buckets.py")]
    steps = [*SHAPE, *settings, "monitor.activations_every_steps=2", "checkpoint.save_every_steps=3"]
    folders = []
    for name, overlap in (("at once", LATE[:1]), ("late", LATE)):
        folder = tmp_path / name
        for count in (4, 7):
            tokens = f"train.train_tokens={count * TOKENS_PER_STEP}"
            done = run(2, [*program, "train", recipe, f"run_dir={folder}", tokens, *steps, *overlap])
            assert done.returncode == 0, done.stderr[-3000:]
        folders.append(folder)
    assert [event["step"] for event in events(folders[1], "checkpoint")] == [0, 3, 4, 6, 7]
    assert losses(folders[1]) == losses(folders[0])
    expected, found = ([*map(numbers, events(folder, "monitor"))] for folder in folders)
    assert len(found) == 3 and found == expected
    for step in (3, 7):
        expected_weights, weights = (load(folder / "checkpoints" / f"step_{step}")[0] for folder in folders)
        assert expected_weights.keys() == weights.keys()
        assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def test_what_weights_gathered_late_need_is_named(recipe: Path, tmp_path: Path) -> None:
    done = train(1, recipe, f"run_dir={tmp_path}", LATE[1])
    assert done.returncode == 2 and "overlap_param_gather needs overlap_grad_reduce: true" in done.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_recomputing_changes_no_bit(precision: str, recipe: Path, tmp_path: Path) -> None:
    def trained(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        steps = f"train.train_tokens={2 * TOKENS_PER_STEP}"
        fit_here(recipe, f"run_dir={tmp_path / name}", steps, f"train.precision={precision}", *overrides)
        return load(tmp_path / name / "checkpoints" / "step_2")[0]

    kept = trained("kept")
    for number, recompute in enumerate(([FULL], [PARTS], [PARTS, PARTS_ALL])):
        again = trained(f"again_{number}", *recompute)
        assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_the_layout_may_change_with_any_start(recipe: Path, five_steps: Path, tmp_path: Path) -> None:
    """From a whole network to virtual stages with recompute, and on to tensor parallelism without."""
    run_dir = start_from(five_steps, 0, tmp_path)
    two = [f"train.train_tokens={2 * TOKENS_PER_STEP}", *SHAPE]
    succeed(2, recipe, f"run_dir={run_dir}", *two, *VIRTUAL, FULL)
    succeed(2, recipe, f"run_dir={run_dir}", *STEPS, tensor(2))
    assert sorted(metrics(run_dir)) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(losses(run_dir), losses(five_steps), rtol=2e-6)


@pytest.mark.slow
def test_virtual_stages_are_stages_on_fewer_ranks(recipe: Path, tmp_path: Path) -> None:
    """Two ranks of two chunks begin with the weights of four ranks, and their checkpoints are the same tensors.

    python -m pytest tests/train/test_parallel.py -m slow -k virtual_stages
    """
    for name, processes, layout in (("four", 4, [pipeline(4)]), ("virtual", 2, VIRTUAL)):
        succeed(processes, recipe, f"run_dir={tmp_path / name}", *STEPS, *layout)
    for step in (0, 5):
        four, virtual = (load(tmp_path / name / "checkpoints" / f"step_{step}")[0] for name in ("four", "virtual"))
        assert four.keys() == virtual.keys()
        for name, tensor_of_four in four.items():
            torch.testing.assert_close(virtual[name], tensor_of_four, rtol=0, atol=0 if step == 0 else 1e-5)


def test_it_learns(finished_run: Path) -> None:
    """Uniform guessing costs ln 256 nats; the next id is one of four, so that ln 4 is the floor."""
    found = losses(finished_run)
    assert abs(found[0] - np.log(256)) < 0.2
    assert np.log(4) < found[-1] < found[0] - 1


def test_fp16_with_the_dynamic_scaler(recipe: Path, tmp_path: Path) -> None:
    """20 steps from a scale that is too high: it comes down, the rest of the steps learn."""
    scaler = ["optimizer.initial_loss_scale=4194304", "optimizer.loss_scale_window=1000", "optimizer.hysteresis=1"]
    succeed(2, recipe, f"run_dir={tmp_path}", "train.precision=fp16", *scaler)
    rows = metrics(tmp_path)
    skipped = {step for step, row in rows.items() if row["grad_norm"] is None}
    assert len(rows) == 20 and 1 in skipped and len(skipped) < 10
    for step in range(1, 20):
        assert rows[step + 1]["loss_scale"] == rows[step]["loss_scale"] / (2 if step in skipped else 1)
    assert rows[20]["skipped_steps"] == len(skipped)
    assert np.isfinite(losses(tmp_path)).all() and losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.3


def test_bf16_follows_fp32(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    succeed(2, recipe, f"run_dir={tmp_path}", "train.precision=bf16")
    np.testing.assert_allclose(losses(tmp_path), losses(finished_run), rtol=0.03)
