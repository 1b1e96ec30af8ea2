"""A plan as rows for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning.plan import USABLE, LayoutPlan, Plan
from megatron_kaiyuan.planning.links import LINK_EFFICIENCY
from megatron_kaiyuan.planning.speed import Speed, flops_per_step

_GIB = 1 << 30
_WORTH_TELLING = 0.005
UNCERTAINTY = "times are right to a quarter at best"
_DAY = 86_400


def gib(number: int) -> str:
    """Bytes as GiB: one digit behind the point, two for less than ten."""
    value = number / _GIB
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which each column ends at one place; columns that are empty everywhere are left out."""
    kept = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(len(word) for word in column) for column in kept]
    return [
        "  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*kept, strict=True)
    ]


def as_json(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """Bytes, seconds, FLOP/s and the price's currency; every micro-batch size."""
    return {
        "gpus": plan.world_size,
        "device": asdict(plan.device) | {"usable_bytes": int(plan.device.memory_bytes(plan.world_size) * USABLE)},
        "mfu": plan.mfu,
        "parameters": count_parameters(plan.run.model),
        "flops_per_step": flops_per_step(plan.run),
        "tokens": plan.tokens,
        "steps": plan.steps,
        "layouts": [_layout_as_json(plan, layout, price) for layout in plan.layouts],
    }


def _layout_as_json(plan: Plan, layout: LayoutPlan, price: float | None) -> dict[str, Any]:
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
    if layout.speed is not None:
        row |= asdict(layout.speed)
        row["days"] = _days(plan, layout.speed)
        row["device_hours"] = hours = _device_hours(plan, layout.speed)
        if price is not None:
            row["cost"] = None if hours is None else hours * price
    return row


def _days(plan: Plan, found: Speed) -> float | None:
    return None if plan.steps is None else plan.steps * found.step_seconds / _DAY


def _device_hours(plan: Plan, found: Speed) -> float | None:
    days = _days(plan, found)
    return None if days is None else days * 24 * plan.world_size


def as_text(plan: Plan, every_micro_batch: bool, price: float | None = None) -> str:
    """The plan for people: what was assumed, then a row for each layout.

    Args:
        price: of a device for an hour, in any currency.
    """
    layouts = plan.layouts if every_micro_batch else plan.best_of_each_shape()
    fitting = [layout for layout in layouts if layout.fits]
    others = [layout for layout in layouts if not layout.fits]
    lines = _heading(plan)
    if fitting:
        lines += aligned([_head(), *(_row(plan, layout) for layout in fitting)])
    else:
        lines.append("no layout fits")
    if others:
        lines += [
            "",
            "do not fit, with the largest part:",
            *aligned([_row_too_large(plan, layout) for layout in others]),
        ]
    if any(layout.is_recipe(plan.run) for layout in layouts):
        lines += ["", "* the recipe's own layout"]
    return "\n".join([*lines, "", *_about_the_best(plan, price), _summary(plan)])


def _heading(plan: Plan) -> list[str]:
    train, device = plan.run.train, plan.device
    peak, memory = device.peak_tflops(train.precision), device.memory_bytes(plan.world_size)
    known = f"{peak:,.0f} TFLOP/s in {train.precision}" if peak else f"peak in {train.precision} not known"
    work = f"a step: {train.global_batch_size} x {train.seq_length} tokens, {flops_per_step(plan.run):.3g} FLOPs"
    if plan.tokens is not None:
        work += f"; {plan.steps:,} steps for {plan.tokens:,} tokens"
    assumed = f"assumed: {USABLE:.0%} of the memory usable"
    if device.platform == "npu":
        assumed += "; in buffers HCCL's of 2 x 200 MB (HCCL_BUFFSIZE) for each communicator"
    if peak:
        known_links = device.network_gb_per_second is not None
        assumed += f"; links {LINK_EFFICIENCY:.0%} of their figures" if known_links else "; links cost nothing"
        source = device.mfu_source if plan.mfu == device.assumed_mfu else "given by hand"
        speed = f"assumed: a stage at work reaches {plan.mfu:.0%} of the peak ({source}); {UNCERTAINTY}"
    else:
        speed = "no times: give --peak-tflops and --mfu"
    return [
        f"{count_parameters(plan.run.model) / 1e9:.3f} B parameters on {plan.world_size} x {device.name}: "
        f"{gib(memory)} GiB, {known}",
        f"figures: {device.source}",
        work,
        assumed,
        speed,
        *_not_counted(plan),
        "memory in GiB, of a rank of the fullest stage; tensor, pipe, data: GiB that a rank sends in a step, at most, "
        "in its tensor-, pipeline- and data-parallel group:",
    ]


def _not_counted(plan: Plan) -> list[str]:
    notes = {
        "the time that optimizer.qk_clip_tau takes to measure attention logits": plan.run.optimizer.qk_clip_tau
        is not None,
        "that model.fp32_head multiplies at the device's speed in FP32": plan.run.model.fp32_head,
    }
    return [f"not counted: {note}" for note, applies in notes.items() if applies]


def _head() -> list[str]:
    names = ["", "TP", "SP", "PP", "DP", "micro", "GiB", "weights", "grads", "optim", "activ", "logits", "buffers"]
    return [*names, "stage", "host", "tensor", "pipe", "data", "s/step", "tokens/s", "TFLOP/s", "days"]


def _layout_columns(layout: LayoutPlan) -> list[str]:
    cuts = [str(layout.shape[0]), "yes" if layout.shape[-1] else "", _pipeline(layout)]
    return [*cuts, str(layout.data_parallel_size), str(layout.run.train.micro_batch_size)]


def _pipeline(layout: LayoutPlan) -> str:
    _, pipeline, virtual, _ = layout.shape
    return f"{pipeline}" if virtual == 1 else f"{pipeline}x{virtual}"


def _row(plan: Plan, layout: LayoutPlan) -> list[str]:
    memory = layout.memory
    parts = [gib(part) for part in asdict(memory.device).values()]
    row = ["*" if layout.is_recipe(plan.run) else "", *_layout_columns(layout), gib(memory.device.total), *parts]
    sent = layout.sent
    row += [memory.stage.role, *map(gib, (memory.host, sent.tensor, sent.pipeline, sent.data))]
    if layout.speed is None:
        return [*row, "-", "-", "-", "-"]
    days = _days(plan, layout.speed)
    found = layout.speed
    row += [f"{found.step_seconds:.3g}", f"{found.tokens_per_second:,.0f}", f"{found.tflops_per_gpu:.0f}"]
    return [*row, "-" if days is None else f"{days:,.1f}"]


def _row_too_large(plan: Plan, layout: LayoutPlan) -> list[str]:
    tensor, *_, sequence_parallel = layout.shape
    part, memory = layout.memory.device.largest_part, layout.memory.device
    return [
        "*" if layout.is_recipe(plan.run) else "",
        f"TP {tensor}{' SP' if sequence_parallel else ''} PP {_pipeline(layout)} DP {layout.data_parallel_size}",
        f"micro {layout.run.train.micro_batch_size}:",
        f"{gib(memory.total)} GiB,",
        f"of which {part} {gib(getattr(memory, part))}",
    ]


def _about_the_best(plan: Plan, price: float | None) -> list[str]:
    """What the best layout costs, and what it would win by overlap."""
    best = plan.layouts[0]
    if not best.fits or best.speed is None:
        return []
    lines = []
    hours = _device_hours(plan, best.speed)
    if hours is not None:
        cost = "" if price is None else f", {hours * price:,.0f} at {price:g} for a device and hour"
        lines.append(f"the best takes {hours:,.0f} device-hours{cost}, without failures and restarts")
    faster = plan.overlapped(best)
    if faster is not None and faster.step_seconds < (1 - _WORTH_TELLING) * best.speed.step_seconds:
        fields = "parallel.overlap_grad_reduce=true parallel.overlap_param_gather=true"
        lines.append(f"with {fields}: {faster.step_seconds:.3g} s a step instead of {best.speed.step_seconds:.3g}")
    return lines


def _summary(plan: Plan) -> str:
    count = sum(layout.fits for layout in plan.layouts)
    if not count:
        smallest = plan.layouts[0].memory.device.total
        return (
            f"plan: none of {len(plan.layouts)} layouts fits; the smallest needs {gib(smallest)} GiB; take more "
            "devices, or a shorter train.seq_length"
        )
    best = plan.layouts[0].run
    parallel = best.parallel
    name = "virtual_pipeline_model_parallel_size"
    virtual = "" if parallel.virtual_stages is None else f"parallel.{name}={parallel.virtual_stages} "
    return (
        f"plan: {count} of {len(plan.layouts)} layouts fit; the best: "
        f"parallel.tensor_model_parallel_size={parallel.tensor_model_parallel_size} "
        f"parallel.pipeline_model_parallel_size={parallel.pipeline_model_parallel_size} "
        f"{virtual}parallel.sequence_parallel={str(parallel.sequence_parallel).lower()} "
        f"train.micro_batch_size={best.train.micro_batch_size}"
    )
