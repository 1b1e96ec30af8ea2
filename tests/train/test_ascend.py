"""Training on platform npu, over the torch_npu without hardware of `tests/platform/fake_ascend`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import TOKENS_PER_STEP, events, faulty, launch, losses, metrics, start_from
from test_resume import load

from tests.rank_server import run

FAKE = Path(__file__).parents[1] / "platform" / "fake_ascend"
SCALER = ["optimizer.initial_loss_scale=1024", "optimizer.hysteresis=1"]
STEPS = 6
SHORT = [f"train.train_tokens={STEPS * TOKENS_PER_STEP}"]
FP16 = [*SHORT, *SCALER, "train.precision=fp16", "parallel.use_distributed_optimizer=false"]
# Of rank 1, in the first backward pass of step 3 and in the second of step 4.
OVERFLOWS = {"1": [5, 8]}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes a node of simulated NPUs of the processes that are started from now on; its calls so far, by rank."""
    log = tmp_path / "calls.jsonl"

    def simulate(**fake: Any) -> None:
        paths = [str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.setenv("FAKE_NPU", json.dumps({"log": str(log), **fake}))

    def calls(rank: int) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in log.read_text().splitlines()]
        return [call for call in found if call["rank"] == rank]

    simulate.calls = calls  # type: ignore[attr-defined]
    return simulate


def succeed(recipe: Path, run_dir: Path, *overrides: str) -> str:
    """Train on two simulated NPUs, in forks that have no platform yet; the standard output."""
    command = ["-m", "megatron_kaiyuan.cli", "train", recipe, f"run_dir={run_dir}", "platform=npu", *overrides]
    done = run(2, command, imported="torch")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(run_dir: Path) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = next(row["table"] for row in rows if row.get("event") == "implementations")
    return {row["op"]: (row["implementation"], row["why"]) for row in found}


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load(run_dir / "checkpoints" / f"step_{step}")[0]


def test_an_overflow_on_one_910a_withholds_the_step_of_all(recipe: Path, machine: Any, tmp_path: Path) -> None:
    """Steps 3 and 4 overflow on one of two data-parallel ranks, in one of two micro-batches: only its register tells.

    With the plain optimizer megatron-core asks nobody of the other data-parallel ranks.
    """
    run_dir = tmp_path / "run"
    machine(soc="910A", overflows=OVERFLOWS)
    printed = succeed(recipe, run_dir, *FP16, "checkpoint.save_every_steps=2")
    assert [metrics(run_dir)[step]["loss_scale"] for step in range(1, STEPS + 1)] == [1024, 1024, 1024, 512, 256, 256]
    assert [step for step, row in metrics(run_dir).items() if row["grad_norm"] is None] == [3, 4]
    first, before, after, last = (weights(run_dir, step) for step in (0, 2, 4, 6))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(
        not torch.equal(one[name], other[name]) for one, other in ((first, before), (after, last)) for name in one
    )

    for rank in (0, 1):
        calls = machine.calls(rank)
        assert [call["call"] for call in calls[:3]] == ["import", "transfer_to_npu", "set_device"]
        assert not calls[1]["megatron"] and calls[2]["device"] == rank
        assert sum(call["call"] == "hccl" for call in calls) > 1
        asked = [(call["after_pass"], call["flag"]) for call in calls if call["call"] == "get_npu_overflow_flag"]
        assert asked == [(number, rank == 1 and number in (5, 8)) for number in range(1, 2 * STEPS + 1)]

    # Nothing is left in a tensor that a second pass could find; the register is not touched by it.
    told = events(run_dir, "overflow")
    assert [event["step"] for event in told] == [3, 4] and all("register" in event["message"] for event in told)

    found = table(run_dir)
    assert found["loss scaling"] == ("dynamic, told by float status of the device", "precision fp16")
    assert found["norm"] == ("torch's kernels", "torch_npu has no npu_rms_norm")
    assert found["optimizer"][0] == "AdamW, torch's fused kernel"
    assert found["collectives"] == ("hccl", "platform npu")
    assert [(told["device"], told["peak_tflops"]) for told in events(run_dir, "utilization")] == [("Ascend910A", 256)]
    assert metrics(run_dir)[1]["mfu"] == metrics(run_dir)[1]["tflops_per_device"] / 256
    assert printed.count("implementations:") == 1 and "float status of the device" in printed


@pytest.mark.slow
def test_a_register_does_what_infinities_do(recipe: Path, machine: Any, tmp_path: Path) -> None:
    """Losses, scales and weights of a run on CPU whose gradients are infinite in these steps, bit for bit.

    The simulated NPU multiplies in FP16, and so does this CPU then, instructions or not.
    `bash tests/run.sh -m slow tests/train/test_ascend.py`
    """
    expected, run_dir = tmp_path / "cpu", tmp_path / "npu"
    fault = {"kind": "infinite_gradient", "from": 2 * TOKENS_PER_STEP, "to": 4 * TOKENS_PER_STEP}
    native = {"kind": "native_half", "from": 0, "to": 0}
    # In fresh processes: forks would have a platform already.
    done = launch(2, faulty([fault, native], recipe, f"run_dir={expected}", *FP16))
    assert done.returncode == 0, done.stderr
    machine(soc="910A", overflows=OVERFLOWS)
    succeed(recipe, run_dir, *FP16)
    assert losses(run_dir) == losses(expected)
    mine, theirs = weights(run_dir, STEPS), weights(expected, STEPS)
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []
    scales = [[row["loss_scale"] for row in metrics(folder).values()] for folder in (run_dir, expected)]
    assert scales[0] == scales[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "fake"),
    [
        (["train.precision=bf16"], {"soc": "910B", "rms_norm": "right"}),
        (["train.precision=fp16", *SCALER], {"soc": "910A", "rms_norm": "right", "fused_adamw": False}),
        (["train.precision=fp32", "parallel.tensor_model_parallel_size=2"], {"soc": "910A", "fused_adamw": False}),
        (["train.precision=fp16", *SCALER, "parallel.pipeline_model_parallel_size=2"], {"soc": "910B"}),
    ],
    ids=str,
)
def test_other_devices_and_layouts(
    settings: list[str], fake: dict[str, Any], recipe: Path, finished_run: Path, machine: Any, tmp_path: Path
) -> None:
    """Close to the CPU's losses, from the same weights: `bash tests/run.sh -m slow tests/train/test_ascend.py`."""
    machine(**fake)
    run_dir = tmp_path / "run"
    if settings[0].endswith("fp32"):
        start_from(finished_run, 0, run_dir)
    succeed(recipe, run_dir, *SHORT, *settings)
    np.testing.assert_allclose(losses(run_dir), losses(finished_run)[:STEPS], rtol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "step"), [("tensor", 2), ("pipeline", 3)])
def test_an_overflow_without_a_loss_scaler_is_a_bad_step(
    layout: str, step: int, recipe: Path, machine: Any, tmp_path: Path
) -> None:
    """In FP32 on a 910A, found by one rank of two. A step has four micro-batches.

    The last two backward passes of a pipeline's first stage follow each other: the register is cleared three times.

    `bash tests/run.sh -m slow tests/train/test_ascend.py`
    """
    machine(soc="910A", overflows={"0": [7]})
    succeed(recipe, tmp_path, *SHORT, f"parallel.{layout}_model_parallel_size=2")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bad = [row for row in rows if row.get("event") == "bad_step"]
    assert [(row["step"], row["action"]) for row in bad] == [(step, "skip")]


@pytest.mark.slow
def test_resume_on_the_npu_is_bitwise(recipe: Path, machine: Any, tmp_path: Path) -> None:
    """`bash tests/run.sh -m slow tests/train/test_ascend.py`"""
    machine(soc="910A", overflows={"1": [2 * 12]})
    settings = ["train.precision=fp16", *SCALER]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    succeed(recipe, whole, *settings)
    machine(soc="910A", overflows={"1": [2 * 2]})
    start_from(whole, 10, resumed)
    succeed(recipe, resumed, *settings)
    assert losses(resumed) == losses(whole)[10:]
