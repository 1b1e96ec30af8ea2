"""A plan as a record for programs: bytes, seconds, FLOP/s and the price's currency."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning.failures import Assumed, losses
from megatron_kaiyuan.planning.plan import USABLE, LayoutPlan, Plan
from megatron_kaiyuan.planning.speed import flops_per_step


@dataclass(frozen=True)
class Costs:
    """What the user says about money and failures.

    Attributes:
        price: of a device for an hour, in any currency; None: no costs.
    """

    price: float | None = None
    assumed: Assumed = field(default_factory=Assumed)


def as_record(plan: Plan, costs: Costs) -> dict[str, Any]:
    """The whole plan, with every micro-batch size.

    `time_spread` is how short and how long published runs took, as parts of the planned time; null where the
    utilization is given by hand.
    """
    return {
        "gpus": plan.world_size,
        "device": asdict(plan.device) | {"usable_bytes": int(plan.device.memory_bytes(plan.world_size) * USABLE)},
        "mfu": plan.mfu,
        "time_spread": plan.spread,
        "parameters": count_parameters(plan.run.model),
        "flops_per_step": flops_per_step(plan.run),
        "tokens": plan.tokens,
        "steps": plan.steps,
        "layouts": [_layout(plan, layout, costs) for layout in plan.layouts],
    }


def _layout(plan: Plan, layout: LayoutPlan, costs: Costs) -> dict[str, Any]:
    memory = layout.memory
    row: dict[str, Any] = {
        **layout.run.parallel.model_dump(
            include={
                "tensor_model_parallel_size",
                "pipeline_model_parallel_size",
                "virtual_pipeline_model_parallel_size",
                "sequence_parallel",
            }
        ),
        "data_parallel_size": layout.data_parallel_size,
        "micro_batch_size": layout.run.train.micro_batch_size,
        "fits": layout.fits,
        "fullest_stage": memory.stage.index,
        "bytes": {**asdict(memory.device), "total": memory.device.total, "host": memory.host},
        "largest_part": memory.device.largest_part,
        "sent_bytes": {**asdict(layout.sent), "data": layout.sent.data},
    }
    return row | _times(plan, layout, costs)


def _times(plan: Plan, layout: LayoutPlan, costs: Costs) -> dict[str, Any]:
    """Days and device-hours are of training alone; `failures` says what is lost besides."""
    lost = losses(plan, layout, costs.assumed)
    if layout.speed is None or lost is None:
        return {}
    hours = plan.device_hours(layout.speed)
    row: dict[str, Any] = {**asdict(layout.speed), "days": plan.days(layout.speed), "device_hours": hours}
    if costs.price is not None:
        row["cost"] = None if hours is None else hours * costs.price
    row["failures"] = {
        "mtbf_seconds": lost.mtbf_seconds,
        "save_stall_seconds": lost.saves.stall,
        "save_write_seconds": lost.saves.write,
        "save_every_steps": lost.steps,
        "lost_part": _finite(lost.lost),
        "best_save_every_steps": lost.best_steps,
        "least_lost_part": _finite(lost.least_lost),
    }
    return row


def _finite(number: float) -> float | None:
    """JSON has no infinity: null where the run would never end."""
    return number if math.isfinite(number) else None
