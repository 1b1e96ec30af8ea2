"""A plan as lines for people: what was assumed, a row for each layout, and what the best one costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.planning.links import LINK_EFFICIENCY
from megatron_kaiyuan.planning.plan import USABLE, LayoutPlan, Plan
from megatron_kaiyuan.planning.records import Costs
from megatron_kaiyuan.planning.show_costs import about_the_best
from megatron_kaiyuan.planning.show_numbers import digits, span, unit_of, with_span
from megatron_kaiyuan.planning.speed import flops_per_step

_GIB, _DAY = 1 << 30, 86_400
# Rows that a screen holds besides the other lines.
_FITTING_ROWS, _OTHER_ROWS = 14, 4
_PARTS = ("weights", "grads", "optim", "activ", "logits", "buffers")


def gib(number: int) -> str:
    """Bytes as GiB: one digit after the point, two for less than ten."""
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


def as_text(plan: Plan, every_layout: bool, costs: Costs | None = None) -> str:
    """The plan for people.

    Args:
        every_layout: all rows, every micro-batch size, and memory by part; else what a screen holds.
        costs: what the user says about money and failures.
    """
    layouts = plan.layouts if every_layout else plan.best_of_each_shape()
    fitting = [layout for layout in layouts if layout.fits]
    others = [layout for layout in layouts if not layout.fits]
    lines = _heading(plan)
    if fitting:
        shown = fitting if every_layout else _first(plan, fitting, _FITTING_ROWS)
        lines += aligned([_head(plan, every_layout), *(_row(plan, layout, every_layout) for layout in shown)])
        lines += _left_out(len(fitting) - len(shown), "slower layouts fit")
    else:
        lines.append("no layout fits")
    if others:
        shown = others if every_layout else _first(plan, others, _OTHER_ROWS)
        lines += [
            "",
            "do not fit, with the largest part:",
            *aligned([_row_too_large(plan, layout) for layout in shown]),
        ]
        lines += _left_out(len(others) - len(shown), "larger layouts do not fit")
    if any(layout.is_recipe(plan.run) for layout in layouts):
        lines.append("* the recipe's own layout")
    return "\n".join([*lines, "", *_best_memory(plan), *about_the_best(plan, costs or Costs()), _summary(plan)])


def _first(plan: Plan, layouts: list[LayoutPlan], rows: int) -> list[LayoutPlan]:
    """So many of the first, and the recipe's own layout wherever it is."""
    return layouts[:rows] + [layout for layout in layouts[rows:] if layout.is_recipe(plan.run)]


def _left_out(count: int, what: str) -> list[str]:
    return [f"... {count} {what}: --all shows them"] if count else []


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
    columns = (
        "memory in GiB, of a rank of the fullest stage; tensor, pipe, data: GiB that a rank sends in a step, at most, "
        "in its group of that kind"
    )
    if peak and plan.tokens is not None:
        columns += f"; {_unit(plan)[0]}: without failures and saves"
    return [
        f"{count_parameters(plan.run.model) / 1e9:.3f} B parameters on {plan.world_size} x {device.name}: "
        f"{gib(memory)} GiB, {known}",
        f"figures: {device.source}",
        work,
        assumed,
        _about_times(plan) if peak else "no times: give --peak-tflops and --mfu",
        *_not_counted(plan),
        f"{columns}:",
    ]


def _about_times(plan: Plan) -> str:
    reached = f"assumed: matrix products reach {plan.mfu:.0%} of the peak"
    if plan.spread is None:
        return f"{reached} (given by hand); times are as right as that is"
    low, high = plan.spread
    return (
        f"{reached} ({plan.device.mfu_source}); steps took {low:g} to {high:g} of the planned time there, which is the "
        "span in brackets"
    )


def _not_counted(plan: Plan) -> list[str]:
    notes = {
        "the time that optimizer.qk_clip_tau takes to measure attention logits": plan.run.optimizer.qk_clip_tau
        is not None,
        "that model.fp32_head multiplies at the device's speed in FP32": plan.run.model.fp32_head,
    }
    return [f"not counted: {note}" for note, applies in notes.items() if applies]


def _unit(plan: Plan) -> tuple[str, int]:
    """Name and seconds of the unit of the last column: the largest of which the best layout takes one."""
    best = plan.layouts[0].speed
    days = None if best is None else plan.days(best)
    return unit_of(_DAY if days is None else days * _DAY)


def _head(plan: Plan, parts: bool) -> list[str]:
    names = ["", "TP", "SP", "PP", "DP", "micro", "GiB", *(_PARTS if parts else ()), "stage"]
    names += [*(["host"] if parts else []), "tensor", "pipe", "data"]
    return [*names, "s/step", "tokens/s", "TFLOP/s", _unit(plan)[0]]


def _layout_columns(layout: LayoutPlan) -> list[str]:
    cuts = [str(layout.shape[0]), "yes" if layout.shape[-1] else "", _pipeline(layout)]
    return [*cuts, str(layout.data_parallel_size), str(layout.run.train.micro_batch_size)]


def _pipeline(layout: LayoutPlan) -> str:
    _, pipeline, virtual, _ = layout.shape
    return f"{pipeline}" if virtual == 1 else f"{pipeline}x{virtual}"


def _row(plan: Plan, layout: LayoutPlan, parts: bool) -> list[str]:
    memory, sent = layout.memory, layout.sent
    row = ["*" if layout.is_recipe(plan.run) else "", *_layout_columns(layout), gib(memory.device.total)]
    if parts:
        row += map(gib, asdict(memory.device).values())
    row += [
        memory.stage.role,
        *([gib(memory.host)] if parts else []),
        *map(gib, (sent.tensor, sent.pipeline, sent.data)),
    ]
    found = layout.speed
    if found is None:
        return [*row, "-", "-", "-", "-"]
    days = plan.days(found)
    seconds = f"{digits(found.step_seconds, 3)}{span(plan, found.step_seconds, 2)}"
    row += [seconds, f"{found.tokens_per_second:,.0f}", f"{found.tflops_per_gpu:.0f}"]
    return [*row, "-" if days is None else with_span(plan, days * _DAY / _unit(plan)[1])]


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


def _best_memory(plan: Plan) -> list[str]:
    best = plan.layouts[0]
    if not best.fits:
        return []
    parts = ", ".join(f"{name} {gib(part)}" for name, part in asdict(best.memory.device).items())
    ema = best.run.ema
    average = " and the average of the weights" if ema.decay is not None and ema.device == "cpu" else ""
    return [f"memory of the best: {parts}; in host memory {gib(best.memory.host)} for a checkpoint{average}"]


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
