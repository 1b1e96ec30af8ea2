"""A checkpoint of any layout of ranks goes on in any other one.

Three things are asked of every pair. What was restored is saved again at once: every tensor of it, weights, main
weights and moments, has to be the one that was read, bit for bit. The losses that follow are those of the run that
was never interrupted, within FP32 rounding: the layouts only add in another order. And where the layout stays, bit
for bit. Steps 10 to 20 begin in the middle of the first phase and cross into the second at step 19.

The whole matrix: bash tests/run.sh -m slow tests/train/test_reshard.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.processes import rank_server
from tests.helpers.training.saved_state import assert_same_state, load, what_counts
from tests.helpers.training.small_run import TOKENS_PER_STEP, losses, metrics, start_from, succeed

TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "dp1": (1, []),
    "dp2": (2, []),
    "dp4": (4, []),
    "tp2": (2, [TENSOR]),
    "tp2-sequence": (2, [TENSOR, "parallel.sequence_parallel=true"]),
    "pp2": (2, [PIPELINE]),
    "tp2-dp2": (4, [TENSOR]),
    "pp2-dp2": (4, [PIPELINE]),
    "tp2-pp2": (4, [TENSOR, PIPELINE]),
}
PAIRS = [
    ("dp1", "tp2-pp2"),
    ("dp2", "tp2"),
    ("dp4", "pp2-dp2"),
    ("tp2", "pp2"),
    ("pp2", "dp2"),
    ("tp2-dp2", "dp1"),
    ("pp2-dp2", "tp2-sequence"),
    ("tp2-pp2", "dp4"),
]
# A scale that doubles every third good step, from one that is too high at first: its state matters at every resume.
SCALER = ["optimizer.initial_loss_scale=4194304", "optimizer.loss_scale_window=3", "optimizer.hysteresis=1"]
PRECISIONS = {"fp32": [], "bf16": ["train.precision=bf16"], "fp16": ["train.precision=fp16", *SCALER]}
PLAIN = "parallel.use_distributed_optimizer=false"
OPTIMIZERS = {"distributed": [], "plain": [PLAIN]}


@pytest.fixture(scope="session")
def from_step_0(recipe: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """Runs of 20 steps that start from the same weights, one for each layout and setting, made when asked for."""
    made: dict[tuple[str, ...], Path] = {}

    def run(layout: str, *settings: str) -> Path:
        wanted = (layout, *settings)
        if wanted == ("dp2",):
            return finished_run
        if wanted not in made:
            run_dir = tmp_path_factory.mktemp("from_step_0")
            processes, overrides = LAYOUTS[layout]
            if not settings:
                start_from(finished_run, 0, run_dir)
            succeed(processes, recipe, f"run_dir={run_dir}", *overrides, *settings)
            made[wanted] = run_dir
        return made[wanted]

    return run


def go_on(recipe: Path, source: Path, step: int, layout: str, run_dir: Path, *settings: str) -> None:
    """Resume a step of `source` in a layout, compare what was restored with what was read, train to the end."""
    start_from(source, step, run_dir)
    processes, overrides = LAYOUTS[layout]
    program = Path(__file__).with_name("restore_worker.py")
    copy = run_dir / "copy"
    done = rank_server.run(processes, [program, "copy", recipe, copy, f"run_dir={run_dir}", *overrides, *settings])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_tensors(copy, source / "checkpoints" / f"step_{step}")


def assert_same_tensors(one: Path, other: Path) -> None:
    tensors, common = load(one)
    others, other_common = load(other)
    assert tensors.keys() == others.keys() and len(tensors) > 30
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert common["progress"] == other_common["progress"]
    assert what_counts(common["optimizer"]) == what_counts(other_common["optimizer"])


def test_from_two_ranks_to_four_to_two(recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """Data parallel, then tensor and pipeline parallel, then pipeline parallel: two pairs, one after the other."""
    four, two = tmp_path / "four", tmp_path / "two"
    go_on(recipe, finished_run, 10, "tp2-pp2", four, f"train.train_tokens={15 * TOKENS_PER_STEP}")
    go_on(recipe, four, 15, "pp2", two)
    np.testing.assert_allclose([*losses(four), *losses(two)], losses(finished_run)[10:], rtol=2e-6)


def test_same_layout_is_bitwise_with_a_scaler_and_without_the_distributed_optimizer(
    recipe: Path, from_step_0, tmp_path: Path
) -> None:
    settings = [*PRECISIONS["fp16"], PLAIN, "checkpoint.save_every_steps=5", "train.train_tokens=5120"]
    _same_layout("tp2", settings, 5, 10, recipe, from_step_0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_weights_optimizer_and_losses(
    source: str, target: str, recipe: Path, from_step_0, finished_run: Path, tmp_path: Path
) -> None:
    run = from_step_0(source)
    go_on(recipe, run, 10, target, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(run)[10:], rtol=2e-6)
    np.testing.assert_allclose(losses(tmp_path), losses(finished_run)[10:], rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("source", "target"), [("tp2", "pp2"), ("pp2", "dp4"), ("dp2", "tp2-pp2")])
def test_half_precision(
    source: str, target: str, precision: str, optimizer: str, recipe: Path, from_step_0, tmp_path: Path
) -> None:
    """Bitwise what is restored; the losses only as close as the half precision of what adds in another order.

    Here the scale grows from far below: at the edge, what overflows depends on the layout.
    """
    settings = [*PRECISIONS[precision], *OPTIMIZERS[optimizer], "optimizer.initial_loss_scale=1024"]
    run = from_step_0(source, *settings)
    go_on(recipe, run, 10, target, tmp_path, *settings)
    np.testing.assert_allclose(losses(tmp_path), losses(run)[10:], rtol=2e-3)
    assert metrics(tmp_path)[11]["loss_scale"] == metrics(run)[11]["loss_scale"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("before", "after"), [("distributed", "plain"), ("plain", "distributed")])
def test_another_kind_of_optimizer(
    before: str, after: str, precision: str, recipe: Path, from_step_0, tmp_path: Path
) -> None:
    """One form on disk, and one arithmetic but for the order in which the norm of the gradient is summed."""
    run = from_step_0("dp2", *PRECISIONS[precision], *OPTIMIZERS[before])
    settings = [*PRECISIONS[precision], *OPTIMIZERS[after]]
    go_on(recipe, run, 10, "dp2", tmp_path, *settings)
    np.testing.assert_allclose(losses(tmp_path), losses(run)[10:], rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2"])
@pytest.mark.parametrize("step", [9, 18])
def test_same_layout_is_bitwise(
    step: int, layout: str, precision: str, optimizer: str, recipe: Path, from_step_0, tmp_path: Path
) -> None:
    """Resumed in the middle of the first phase, and at the last step before the second."""
    settings = [*PRECISIONS[precision], *OPTIMIZERS[optimizer], "checkpoint.save_every_steps=9"]
    _same_layout(layout, settings, step, 20, recipe, from_step_0, tmp_path)


def _same_layout(
    layout: str, settings: list[str], step: int, last: int, recipe: Path, from_step_0, run_dir: Path
) -> None:
    run = from_step_0(layout, *settings)
    processes, overrides = LAYOUTS[layout]
    start_from(run, step, run_dir)
    succeed(processes, recipe, f"run_dir={run_dir}", *overrides, *settings)
    assert losses(run_dir) == losses(run)[step:]
    assert_same_state(run_dir / "checkpoints" / f"step_{last}", run / "checkpoints" / f"step_{last}")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["dp2", "tp2-pp2"])
def test_going_back_inside_a_run(layout: str, precision: str, recipe: Path, from_step_0, tmp_path: Path) -> None:
    """Five steps, back to the checkpoint they began at, the same five steps: the same losses, bit for bit."""
    processes, overrides = LAYOUTS[layout]
    run = start_from(from_step_0(layout, *PRECISIONS[precision]), 10, tmp_path)
    arguments = ["again", recipe, 5, f"run_dir={run}", *overrides, *PRECISIONS[precision]]
    done = rank_server.run(processes, [Path(__file__).with_name("restore_worker.py"), *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
