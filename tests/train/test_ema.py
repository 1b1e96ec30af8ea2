"""The average of the weights that a run keeps: equal to NumPy's, in every layout, through resumes and overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kaiyuan.errors import UserError
from tests.helpers.training.saved_state import load
from tests.helpers.training.small_run import (
    TOKENS_PER_STEP,
    events,
    fit_here,
    losses,
    metrics,
    start_from,
    succeed,
    train_on_bad_machine,
)

DECAY = 0.6
KEPT = [f"ema.decay={DECAY}", "checkpoint.save_every_steps=1", "checkpoint.keep_last=30"]
EMA, MAIN = "optimizer.state.ema.", "optimizer.state.param."
# Step 2 overflows.
FP16 = ["train.precision=fp16", "optimizer.initial_loss_scale=4194304", "optimizer.hysteresis=1"]
PLAIN, TENSOR = "parallel.use_distributed_optimizer=false", "parallel.tensor_model_parallel_size=2"
PIPELINE, HOST = "parallel.pipeline_model_parallel_size=2", "ema.device=cpu"


def until(step: int) -> str:
    return f"train.train_tokens={step * TOKENS_PER_STEP}"


def states(run_dir: Path, prefix: str, step: int) -> dict[str, np.ndarray]:
    """Tensors of a step by the names of the network."""
    tensors, _ = load(run_dir / "checkpoints" / f"step_{step}")
    return {name.removeprefix(prefix): one.numpy() for name, one in tensors.items() if name.startswith(prefix)}


def numpy_ema(weights: list[dict[str, np.ndarray]], decay: float) -> dict[str, np.ndarray]:
    """In FP64, from all weights at once."""
    shares = decay ** np.arange(len(weights))[::-1]
    return {name: sum(s * one[name].astype(np.float64) for s, one in zip(shares, weights, strict=True)) / shares.sum()
            for name in weights[0]}  # fmt: skip


def assert_ema(run_dir: Path, step: int, counted: list[int], decay: float = DECAY) -> None:
    found = states(run_dir, EMA, step)
    expected = numpy_ema([states(run_dir, MAIN, one) for one in counted], decay)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], rtol=2e-6, atol=1e-7, err_msg=name)


def assert_same(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    assert some.keys() == others.keys() and len(some) > 10
    assert [name for name in some if not np.array_equal(some[name], others[name])] == []


def applied(run_dir: Path) -> list[int]:
    """The steps whose update was not withheld."""
    return [step for step, row in sorted(metrics(run_dir).items()) if row["grad_norm"] is not None]


@pytest.fixture(scope="module")
def kept(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps in FP16 on one rank, of which the first ones overflow; every step is saved."""
    run_dir = tmp_path_factory.mktemp("ema") / "kept"
    fit_here(recipe, f"run_dir={run_dir}", until(8), *KEPT, *FP16)
    return run_dir


def test_it_is_numpy_s_over_the_updates(kept: Path) -> None:
    """An overflow changes nothing and does not count."""
    counted = applied(kept)
    assert counted == [1, 3, 4, 5, 6, 7, 8]
    assert_ema(kept, 8, counted)
    assert_same(states(kept, EMA, 2), states(kept, EMA, 1))
    # The average has no start value: before the first update it is the weights themselves, and after it too.
    for step in (0, 1):
        assert_same(states(kept, EMA, step), states(kept, MAIN, step))


def test_the_run_is_bitwise_the_one_without(recipe: Path, kept: Path, tmp_path: Path) -> None:
    fit_here(recipe, f"run_dir={tmp_path}", until(8), *FP16)
    assert losses(tmp_path) == losses(kept)
    without, common = load(tmp_path / "checkpoints" / "step_8")
    tensors, _ = load(kept / "checkpoints" / "step_8")
    assert not any(name.startswith(EMA) for name in without) and "ema" not in common
    assert all(torch.equal(one, tensors[name]) for name, one in without.items())


def test_a_resume_is_bitwise(recipe: Path, kept: Path, tmp_path: Path) -> None:
    fit_here(recipe, f"run_dir={start_from(kept, 6, tmp_path)}", until(8), *KEPT, *FP16, HOST)
    (tensors, common), (others, other) = (load(one / "checkpoints" / "step_8") for one in (kept, tmp_path))
    assert tensors.keys() == others.keys() and common["ema"] == other["ema"]
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def test_other_layouts_read_it_and_keep_it(recipe: Path, kept: Path, tmp_path: Path) -> None:
    """On one rank, without the distributed optimizer, then in tensor parallel: the average of all updates."""
    run_dir = start_from(kept, 8, tmp_path / "run")
    fit_here(recipe, f"run_dir={run_dir}", until(9), *KEPT, *FP16, PLAIN)
    succeed(2, recipe, f"run_dir={run_dir}", until(11), *KEPT, *FP16, TENSOR, HOST)
    for step in range(8):
        start_from(kept, step, run_dir)
    assert applied(run_dir) == [10, 11]
    assert_ema(run_dir, 11, [*applied(kept), *applied(run_dir)])
    # What other layouts wrote is averaged together.
    _average(run_dir, tmp_path / "averaged", 8, 9, 10, 11)
    sources = [states(run_dir, "", step) for step in (8, 9, 10, 11)]
    for name, one in _read(tmp_path / "averaged", "model")[0].items():
        expected = np.mean([source[name].astype(np.float64) for source in sources], axis=0)
        np.testing.assert_allclose(one.numpy(), expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_on_and_off_at_a_resume(recipe: Path, kept: Path, tmp_path: Path) -> None:
    """Switched off, it is dropped; switched on, it begins at the weights that were loaded, with a decay of its own."""
    run_dir = start_from(kept, 8, tmp_path)
    fit_here(recipe, f"run_dir={run_dir}", until(9), *FP16, "checkpoint.save_every_steps=1")
    assert states(run_dir, EMA, 9) == {}
    fit_here(recipe, f"run_dir={run_dir}", until(12), *KEPT, *FP16, "ema.decay=0.9")
    assert_ema(run_dir, 12, [10, 11, 12], 0.9)
    # A change of the decay counts from then on: what was averaged keeps its weight in the sum.
    fit_here(recipe, f"run_dir={run_dir}", until(13), *KEPT, *FP16, "ema.decay=0.5")
    total = 0.9**2 + 0.9 + 1
    before, now, found = states(run_dir, EMA, 12), states(run_dir, MAIN, 13), states(run_dir, EMA, 13)
    for name, one in found.items():
        expected = (0.5 * total * before[name] + now[name]) / (0.5 * total + 1)
        np.testing.assert_allclose(one, expected, rtol=2e-6, atol=1e-7)


def test_every_second_update_counts(recipe: Path, tmp_path: Path) -> None:
    fit_here(recipe, f"run_dir={tmp_path}", until(6), *KEPT, "ema.every_steps=2")
    assert_ema(tmp_path, 6, [2, 4, 6], DECAY**2)
    assert_same(states(tmp_path, EMA, 5), states(tmp_path, EMA, 4))


@pytest.mark.slow
def test_a_rollback_brings_it_back(recipe: Path, tmp_path: Path) -> None:
    """Step 5 is bad: the run goes back to step 3, leaves the batch out and trains on."""
    faults = [{"kind": "nan_loss", "from": 4 * TOKENS_PER_STEP, "to": 5 * TOKENS_PER_STEP}]
    options = [f"ema.decay={DECAY}", "checkpoint.save_every_steps=3", "faults.on_bad_step=rollback", HOST]
    done = train_on_bad_machine(1, faults, recipe, f"run_dir={tmp_path}", until(9), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(events(tmp_path, "rollback")) == 1
    _, common = load(tmp_path / "checkpoints" / "step_6")
    assert common["ema"]["total"] == pytest.approx(sum(DECAY**age for age in range(6)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, FP16),
        (2, [PLAIN]),
        (2, [TENSOR, *FP16]),
        (2, [PIPELINE, HOST]),
        (4, [TENSOR, PIPELINE, *FP16]),
        (2, ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true", "train.precision=bf16"]),
    ],
)
def test_every_layout(processes: int, settings: list[str], recipe: Path, tmp_path: Path) -> None:
    """All of them: bash tests/run.sh -m slow tests/train/test_ema.py"""
    succeed(processes, recipe, f"run_dir={tmp_path}", until(8), *KEPT, *settings)
    assert_ema(tmp_path, 8, applied(tmp_path))
    resumed = start_from(tmp_path, 6, tmp_path / "resumed")
    succeed(processes, recipe, f"run_dir={resumed}", until(8), *KEPT, *settings)
    (tensors, _), (others, _) = (load(one / "checkpoints" / "step_8") for one in (tmp_path, resumed))
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def test_it_is_read_as_weights_of_the_network(kept: Path, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.find import find_checkpoint

    found = find_checkpoint(kept, 8, "ema")
    assert found.name == f"{kept}, step 8, EMA" and found.weights == "ema"
    loaded, network = _read(found.folder, found.weights)
    expected = states(kept, EMA, 8)
    assert_same({name: one.numpy() for name, one in loaded.items()}, expected)
    embedding = expected["embedding.word_embeddings.weight"]
    assert np.array_equal(network["embedding.word_embeddings.weight"].detach().numpy(), embedding)
    with pytest.raises(UserError, match="averaged: holds no EMA of the weights"):
        _average(kept, tmp_path / "averaged", 7, 8)
        find_checkpoint(tmp_path / "averaged", None, "ema")


def _read(folder: Path, weights: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """As whole tensors, and as the network that they are put into."""
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights, model_of
    from megatron_kaiyuan.checkpoint.network import load_network
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate("cpu")):
        model = model_of(folder, load_common(folder)["run"])
        return load_weights(folder, weights), dict(load_network(folder, model, weights).named_parameters())


def _average(run_dir: Path, output: Path, *steps: int) -> None:
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(platform.activate("cpu")):
        average_checkpoints(run_dir, Selection(steps=steps), output)
