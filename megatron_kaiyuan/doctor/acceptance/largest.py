"""One step of a large recipe in the layout that the plan puts first: does what it takes fit what was planned?"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context, NotPossible
from megatron_kaiyuan.doctor.acceptance.training import cores, launcher, over_corpus, recipe
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.planning.communicators import communicator_buffers
from megatron_kaiyuan.planning.plan import LayoutPlan, make_plan
from megatron_kaiyuan.platform.datasheets import Device, device_named, device_reported_as

_GIB = 1 << 30
# Of the planned memory that a step may take more.
_MARGIN = 1.05
# Tried one after the other until a layout fits.
_RECOMPUTED = ("null", "selective", "full")


@dataclass(frozen=True)
class _Chosen:
    """The first layout that fits, and what makes one step of it."""

    layout: LayoutPlan
    overrides: list[str]


def largest(context: Context) -> str:
    """Without a checkpoint, whose writing says nothing of memory and takes minutes."""
    if context.recipe is None and context.on_cpu:
        raise NotPossible("Kaiyuan-2B is too large for a CPU; name a smaller recipe (--recipe)")
    platform = context.activate()
    device = _figures(context, platform.device_name())
    path = context.recipe or recipe("kaiyuan-2b")
    # The rate does not matter for one step; initial scales of FP16 that overflow would leave the update out.
    common = [*over_corpus(context, 1e-5), f"platform={context.platform}", "optimizer.initial_loss_scale=64"]
    chosen = _first_that_fits(path, context.ranks, device, common)
    answer = context.work / "largest.json"
    command = [*launcher(context.ranks), "-m", f"{__spec__.parent}.largest_ranks", str(answer), str(path)]
    command += [f"run_dir={context.work / 'largest'}", *chosen.overrides]
    print(f"$ {' '.join(command)}", flush=True)
    if code := subprocess.run(command, env={**os.environ, **cores(context.ranks)}, check=False).returncode:
        raise CheckFailed(f"{_shape(chosen.layout)}: ended with exit code {code}, as its output says")
    found = read_json(answer, "answer of the step")
    memory = chosen.layout.memory
    # The peak is that of torch's allocator, which knows nothing of the buffers of collectives.
    planned = memory.device.total - communicator_buffers(memory.stage, device)
    figure = (
        f"{path.parent.name}, {_shape(chosen.layout)}: peak {found['peak'] / _GIB:.2f} GiB on its fullest rank, "
        f"planned {planned / _GIB:.2f} GiB for {device.name}; loss {found['loss']:.3f}, "
        f"{'skipped' if found['skipped'] else 'updated'}, {found['seconds']:.1f} s"
    )
    # A CPU's peak is that of the whole process, libraries and all.
    if found["skipped"] or not (context.on_cpu or found["peak"] <= _MARGIN * planned):
        raise CheckFailed(figure)
    return figure


def _figures(context: Context, name: str) -> Device:
    device = device_named("cpu") if context.on_cpu else device_reported_as(name)
    if device is None:
        raise NotPossible(f"platform/datasheets.py does not know {name}, so that nothing is planned for it")
    return device


def _first_that_fits(path: Path, ranks: int, device: Device, common: list[str]) -> _Chosen:
    for recomputed in _RECOMPUTED:
        overrides = [*common, f"parallel.recompute_granularity={recomputed}"]
        first = make_plan(path, overrides, ranks, device, None).layouts[0]
        if first.fits:
            return _Chosen(first, [*overrides, *_one_step(first)])
    needed = first.memory.device.total / _GIB
    raise NotPossible(
        f"no layout of {path.parent.name} fits on {ranks} x {device.name}: the smallest takes {needed:.1f} GiB"
    )


def _one_step(layout: LayoutPlan) -> list[str]:
    """The layout as overrides, and as few micro-batches as fill its pipeline."""
    run: RunConfig = layout.run
    parallel, train = run.parallel, run.train
    samples = (
        layout.data_parallel_size
        * train.micro_batch_size
        * parallel.pipeline_model_parallel_size
        * parallel.virtual_pipeline_model_parallel_size
    )
    return [
        *(f"parallel.{name}={str(value).lower()}" for name, value in _cut(run).items()),
        f"train.micro_batch_size={train.micro_batch_size}",
        f"train.global_batch_size={samples}",
        f"train.train_tokens={samples * train.seq_length}",
        "optimizer.warmup_tokens=0",
        "optimizer.schedule_tokens=null",
        "monitor.activations_every_steps=0",
    ]


def _cut(run: RunConfig) -> dict[str, int | bool]:
    names = {"tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"}
    return run.parallel.model_dump(include={*names, "sequence_parallel", "use_distributed_optimizer"})


def _shape(layout: LayoutPlan) -> str:
    parallel = layout.run.parallel
    recomputed = f", recompute {parallel.recompute_granularity}" if parallel.recompute_granularity else ""
    return (
        f"TP {parallel.tensor_model_parallel_size} PP {parallel.pipeline_model_parallel_size} "
        f"DP {layout.data_parallel_size}, micro-batch {layout.run.train.micro_batch_size}{recomputed}"
    )
