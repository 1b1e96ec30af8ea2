"""The quickstart's training on the devices: against the CPU, recomputed, killed and resumed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context, NotPossible, worst
from megatron_kaiyuan.doctor.acceptance.corpus import VOCABULARY, phase
from megatron_kaiyuan.doctor.child import kill_tree
from megatron_kaiyuan.files import remove
from megatron_kaiyuan.report.metrics import History, read_history
from megatron_kaiyuan.starter.shipped import shipped

_SEQUENCE = 256
_SAMPLES = 8
# Losses start at ln(1024) = 6.9. FP16 rounds at other places on a device than on a CPU.
_STEP_1, _LATER = 0.01, 0.1
_LARGEST_SCALE = 2**31


def recipe(name: str) -> Path:
    """A recipe of the project's own.

    Raises:
        NotPossible: this installation has lost it.
    """
    path = shipped("launch") / "recipes" / name / "train.yaml"
    if not path.is_file():
        raise NotPossible(f"{path} is missing: install the project again")
    return path


def without_fallback(context: Context) -> str:
    """A step of which torch_npu may compute nothing on the host."""
    context.require("npu", because="it is torch_npu that may compute operators on the host")
    history = train(context, "no_fallback", _fp16(context, 1), environment={"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"})
    return f"loss {history.rows[0]['loss']:.4f}; every operator ran on the device"


def against_cpu(context: Context) -> str:
    """Twenty steps from the same weights on the same tokens; step 1 is one forward pass apart."""
    if context.on_cpu:
        raise NotPossible("it would compare the CPU with itself")
    steps = 20
    there = train(context, "device", _fp16(context, steps))
    here = train(context, "cpu", _fp16(context, steps), platform="cpu")
    apart = [abs(one["loss"] - other["loss"]) for one, other in zip(there.rows, here.rows, strict=True)]
    figure = (
        f"step 1 apart {apart[0]:.1e}, the worst of {steps} {worst(apart):.1e}; loss {there.rows[0]['loss']:.3f} to "
        f"{there.rows[-1]['loss']:.3f}, {len(skipped(there))} skipped, "
        f"{there.rows[-1]['seconds_per_step']:.2f} s a step"
    )
    if not (apart[0] <= _STEP_1 and worst(apart) <= _LATER):
        raise CheckFailed(figure)
    return figure


def recompute(context: Context) -> str:
    """What the backward pass computes again must neither overflow nor change losses."""
    steps = 10
    runs = {"nothing": _fp16(context, steps)}
    for kind in ("full", "selective"):
        runs[kind] = [*_fp16(context, steps), f"parallel.recompute_granularity={kind}"]
    histories = {kind: train(context, f"recompute_{kind}", overrides) for kind, overrides in runs.items()}
    plain = histories["nothing"].column("loss")
    apart = {kind: float(abs(one.column("loss") - plain).max()) for kind, one in histories.items()}
    figure = "; ".join(
        f"{kind}: {len(skipped(one))} of {len(one.rows)} steps skipped, {apart[kind]:.1e} apart"
        for kind, one in histories.items()
    )
    if any(skipped(one) for one in histories.values()) or not worst(apart.values()) <= _STEP_1:
        raise CheckFailed(figure)
    return figure


def resume(context: Context) -> str:
    """Start at a loss scale at which every gradient overflows, kill all ranks after a checkpoint, and resume."""
    steps, every = 40, 10
    overrides = [
        *_fp16(context, steps, context.ranks),
        f"optimizer.initial_loss_scale={_LARGEST_SCALE}",
        "optimizer.hysteresis=1",
        f"checkpoint.save_every_steps={every}",
        # A dozen steps overflow, and none has to be run again to name where.
        "monitor.overflow_capsules=0",
    ]
    killed = train(context, "resume", overrides, ranks=context.ranks, kill_after=2 * every)
    whole = train(context, "resume", overrides, ranks=context.ranks, fresh=False)
    return _resumed(killed, whole, context.ranks)


def _resumed(killed: History, whole: History, ranks: int) -> str:
    before = {row["step"]: row for row in killed.rows}
    step = whole.restarts[-1]["step"] if whole.restarts else None
    if step is None:
        raise CheckFailed("the second start did not continue from a checkpoint of the first")
    again = [row for row in whole.rows if row["step"] > step and row["step"] in before]
    if not again:
        raise CheckFailed(f"no step after {step} was trained twice, so that nothing shows that the losses are the same")
    apart = worst(abs(row["loss"] - before[row["step"]]["loss"]) for row in again)
    scales = [row["loss_scale"] for row in whole.rows]
    kept = all(row["loss_scale"] == before[row["step"]]["loss_scale"] for row in again)
    halved = math.log2(_LARGEST_SCALE / scales[-1])
    figure = (
        f"{ranks} ranks: {len(skipped(whole))} steps skipped, scale 2^31 to 2^{31 - halved:.0f}; killed after step "
        f"{max(before)}, continued from {step}; {len(again)} steps trained again, {apart:.1e} apart, "
        f"scales {'the same' if kept else 'NOT the same'}"
    )
    if scales[0] != _LARGEST_SCALE or not scales[-1] < _LARGEST_SCALE or not kept or not apart <= _STEP_1:
        raise CheckFailed(figure)
    return figure


def skipped(history: History) -> list[int]:
    """Steps whose update was withheld."""
    return [row["step"] for row in history.rows if row["grad_norm"] is None]


def _fp16(context: Context, steps: int, ranks: int = 1) -> list[str]:
    micro = max(1, _SAMPLES // ranks)
    return [
        *over_corpus(context, 6e-3),
        f"model.vocab_size={VOCABULARY}",
        f"train.train_tokens={steps * micro * ranks * _SEQUENCE}",
        f"train.micro_batch_size={micro}",
        f"train.global_batch_size={micro * ranks}",
        "optimizer.initial_loss_scale=1024",
        "optimizer.warmup_tokens=10000",
        "monitor.activations_every_steps=0",
    ]


def over_corpus(context: Context, peak_lr: float) -> list[str]:
    """What every run here changes of its recipe: data, precision, a row and a line for each step."""
    return [
        f"data.phases=[{{path: {phase(context)}, peak_lr: {peak_lr}}}]",
        "train.precision=fp16",
        "monitor.log_every_steps=1",
    ]


def train(
    context: Context,
    name: str,
    overrides: Sequence[str],
    *,
    ranks: int = 1,
    platform: str | None = None,
    fresh: bool = True,
    kill_after: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> History:
    """Train the quickstart's recipe.

    Args:
        fresh: remove an earlier run of the name.
        kill_after: a step at which all processes get SIGKILL, once it has a checkpoint and a later step is done.

    Raises:
        CheckFailed: training ended otherwise than it should.
    """
    run_dir = context.work / name
    if fresh:
        remove(run_dir)
    program = ["-m", "megatron_kaiyuan.cli", "train", str(recipe("quickstart")), f"run_dir={run_dir}"]
    command = [*launcher(ranks), *program, f"platform={platform or context.platform}", *overrides]
    print(f"$ {' '.join(command)}", flush=True)
    process = subprocess.Popen(command, env={**os.environ, **cores(ranks), **(environment or {})})
    try:
        code = process.wait() if kill_after is None else _killed(process, run_dir, kill_after)
    finally:
        kill_tree(process)
    if code:
        raise CheckFailed(f"{name}: training ended with exit code {code}, as its output says")
    return read_history(run_dir / "metrics.jsonl")


def _killed(process: subprocess.Popen, run_dir: Path, step: int) -> int:
    """Kill the ranks when the step has a checkpoint and another one follows; 0, or the exit code of an earlier end."""
    manifest, metrics = run_dir / "checkpoints" / f"step_{step}" / "manifest.json", run_dir / "metrics.jsonl"
    while not (manifest.exists() and read_history(metrics).rows[-1]["step"] > step):
        if process.poll() is not None:
            return process.returncode or 1
        time.sleep(0.05)
    print(f"SIGKILL to all ranks after step {step}", flush=True)
    kill_tree(process)
    return 0


def launcher(ranks: int) -> list[str]:
    """How this project starts so many ranks of a Python program on a node."""
    if ranks == 1:
        return [sys.executable]
    return [
        *(sys.executable, "-m", "megatron_kaiyuan.cluster.torchrun"),
        *("--standalone", "--nproc-per-node", str(ranks)),
    ]


def cores(ranks: int) -> dict[str, Any]:
    """Each rank's share of the cores, as the launch scripts set it."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))}
