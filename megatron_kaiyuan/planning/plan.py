"""`kaiyuan plan`: every legal layout of a recipe on so many devices, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.data.phase import MANIFEST, read_manifest
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.calibrate import from_measured
from megatron_kaiyuan.planning.communication import Communication, most_sent
from megatron_kaiyuan.planning.layouts import legal_layouts
from megatron_kaiyuan.planning.memory import StageMemory, fullest_stage
from megatron_kaiyuan.planning.parameters import PipelineStage
from megatron_kaiyuan.planning.speed import Speed, speed
from megatron_kaiyuan.platform.datasheets import Device

# Of a device's memory; the rest is for its driver, the collectives' buffers and fragments between allocations.
USABLE = 0.92
# Two layouts whose steps differ by less are equally fast; then the larger micro-batch has the larger kernels.
_SAME_SPEED = 0.005
_DAY = 86_400


@dataclass(frozen=True)
class LayoutPlan:
    """One layout: what its fullest stage needs, what a rank sends, and how fast it is where that is known."""

    run: RunConfig
    data_parallel_size: int
    memory: StageMemory
    sent: Communication
    speed: Speed | None
    fits: bool

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        parallel = self.run.parallel
        sizes = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        return *sizes, parallel.virtual_pipeline_model_parallel_size, parallel.sequence_parallel

    def is_recipe(self, run: RunConfig) -> bool:
        """The layout that the recipe itself names."""
        return (self.run.parallel, self.run.train) == (run.parallel, run.train)


@dataclass(frozen=True)
class Plan:
    """All layouts of a recipe: those that fit, the fastest first, then the others, the smallest first.

    Attributes:
        mfu: part of the peak that matrix products reach.
        spread: how short and how long published runs took, as parts of the planned time; None: `mfu` is given by hand.
    """

    run: RunConfig
    world_size: int
    device: Device
    mfu: float
    spread: tuple[float, float] | None
    tokens: int | None
    layouts: list[LayoutPlan]

    def overlapped(self, layout: LayoutPlan) -> Speed | None:
        """How fast a layout is when gradients and weights travel beside the passes; None where they do already."""
        parallel = layout.run.parallel
        if not parallel.use_distributed_optimizer or (parallel.overlap_grad_reduce and parallel.overlap_param_gather):
            return None
        both = parallel.model_copy(update={"overlap_grad_reduce": True, "overlap_param_gather": True})
        return speed(layout.run.model_copy(update={"parallel": both}), self.world_size, self.device, self.mfu)

    def days(self, found: Speed) -> float | None:
        """Of training alone; None where the tokens are not known."""
        return None if self.steps is None else self.steps * found.step_seconds / _DAY

    def device_hours(self, found: Speed) -> float | None:
        """Of training alone; None where the tokens are not known."""
        days = self.days(found)
        return None if days is None else days * 24 * self.world_size

    @property
    def steps(self) -> int | None:
        return None if self.tokens is None else self.tokens // self.run.train.tokens_per_step

    def best_of_each_shape(self) -> list[LayoutPlan]:
        """The recipe's own layout, and one micro-batch size for each way to cut the network."""
        first: dict[tuple[int, int, int, bool], LayoutPlan] = {}
        for layout in self.layouts:
            first.setdefault(layout.shape, layout)
        return [one for one in self.layouts if first[one.shape] is one or one.is_recipe(self.run)]


def make_plan(
    recipe: Path,
    overrides: Sequence[str],
    world_size: int,
    device: Device,
    mfu: float | None,
    measured_mfu: float | None = None,
) -> Plan:
    """Plan a recipe.

    Args:
        mfu: part of the device's peak that matrix products reach; None: the device's `assumed_mfu`.
        measured_mfu: `mfu_causal` of the recipe's own layout on so many devices, from which `mfu` follows.

    Raises:
        UserError: the recipe is wrong, the device does not run its precision or its attention, or no layout of it is
            legal on so many devices.
    """
    run = load_run(recipe, overrides)
    if run.train.precision not in device.precisions:
        raise UserError(
            f"train.precision: {run.train.precision} does not run on --gpu {device.name}; "
            f"use {' or '.join(device.precisions)}"
        )
    for operation in ("attention", "document_attention"):
        if not device.fused_attention and getattr(run.backend, operation) == "torch":
            raise UserError(f"backend.{operation}: torch does not run on --gpu {device.name}; use auto")
    legal = legal_layouts(run, world_size)
    if measured_mfu is not None:
        _require_legal(run, legal, world_size)
        mfu = from_measured(run, world_size, device, measured_mfu)
    spread = device.time_spread if mfu is None else None
    mfu = device.assumed_mfu if mfu is None else mfu
    usable = device.memory_bytes(world_size) * USABLE
    layouts = []
    for layout in legal:
        memory = fullest_stage(layout, world_size, device)
        fits = memory.device.total <= usable
        data_parallel = PipelineStage(layout, world_size, 0).data_parallel_size
        sent, found = most_sent(layout, world_size), speed(layout, world_size, device, mfu)
        layouts.append(LayoutPlan(layout, data_parallel, memory, sent, found, fits))
    return Plan(run, world_size, device, mfu, spread, _tokens(run), _ordered(layouts))


def require_steps(plan: Plan) -> None:
    """Refuse tokens that are known and are less than one step: such a run has no cost."""
    train, tokens = plan.run.train, plan.tokens
    if tokens is not None and tokens < train.tokens_per_step:
        field = "data.phases" if train.train_tokens is None else "train.train_tokens"
        raise UserError(
            f"{field}: nothing to train: {tokens:,} tokens are less than a step of {train.tokens_per_step:,}; take "
            "more, or a smaller train.global_batch_size"
        )


def _require_legal(run: RunConfig, legal: Sequence[RunConfig], world_size: int) -> None:
    if not any((one.parallel, one.train) == (run.parallel, run.train) for one in legal):
        raise UserError(
            f"--measured-mfu: the recipe's own layout is not legal on --gpus {world_size}; give the number of "
            "devices and the parallel.* fields that it was measured with"
        )


def _ordered(layouts: list[LayoutPlan]) -> list[LayoutPlan]:
    """Those that fit by time, then fewer cuts, then larger micro-batches, then less memory; the others by memory."""
    fitting = [layout for layout in layouts if layout.fits]
    fastest = min((layout.speed.step_seconds for layout in fitting if layout.speed), default=1.0)

    def rank(layout: LayoutPlan) -> tuple[int, int, int, int]:
        slower = round(layout.speed.step_seconds / fastest / _SAME_SPEED) if layout.speed else 0
        cuts = layout.run.parallel.model_parallel_size
        return slower, cuts, -layout.run.train.micro_batch_size, layout.memory.device.total

    others = [layout for layout in layouts if not layout.fits]
    return sorted(fitting, key=rank) + sorted(others, key=lambda layout: layout.memory.device.total)


def _tokens(run: RunConfig) -> int | None:
    """What the run trains on: the recipe's number, or what its phases hold where they are there."""
    if run.train.train_tokens is not None:
        return run.train.train_tokens
    manifests = [phase.path / MANIFEST for phase in run.data.phases]
    if not all(path.is_file() for path in manifests):
        return None
    return sum(read_manifest(path.parent)["tokens"] for path in manifests)
