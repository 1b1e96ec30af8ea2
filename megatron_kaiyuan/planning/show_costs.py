"""Lines on what the best layout of a plan costs: hours, money, failures and saves."""

from __future__ import annotations

from megatron_kaiyuan.planning.failures import Losses, losses
from megatron_kaiyuan.planning.plan import LayoutPlan, Plan
from megatron_kaiyuan.planning.records import Costs
from megatron_kaiyuan.planning.show_numbers import digits, duration, unit_of, with_span

# Part of the time that a hint must win to be given.
_WORTH_A_LINE, _WORTH_A_WORD = 0.005, 0.001
# Times the training itself: beyond it a run is not worth a forecast.
_ENDLESS = 10


def about_the_best(plan: Plan, costs: Costs) -> list[str]:
    """Device-hours, money, failures and saves of the best layout, and what it would win by overlap."""
    best = plan.layouts[0]
    lost = losses(plan, best, costs.assumed)
    if not best.fits or best.speed is None or lost is None:
        return []
    return [*_hours(plan, best, lost, costs), *_failures(plan, best, lost, costs), *_overlap(plan, best)]


def _hours(plan: Plan, best: LayoutPlan, lost: Losses, costs: Costs) -> list[str]:
    """Device-hours, days and money with all losses; of a run that hardly ends those of training alone."""
    hours = None if best.speed is None else plan.device_hours(best.speed)
    if hours is None:
        return []
    if lost.lost > _ENDLESS:
        alone = f"{digits(hours, 3)} device-hours of training"
        return [f"the best takes {alone}; failures and saves add {_percent(lost.lost)} that"]
    hours *= 1 + lost.lost
    seconds = hours * 3600 / plan.world_size
    unit, size = unit_of(seconds)
    line = f"the best takes {with_span(plan, hours, 'device-hours')} in {with_span(plan, seconds / size, unit)}"
    if costs.price is not None:
        line += f", {with_span(plan, hours * costs.price)} at {costs.price:,.10g} for a device and hour"
    return [f"{line}, with the {_percent(lost.lost)} that failures and saves add"]


def _failures(plan: Plan, best: LayoutPlan, lost: Losses, costs: Costs) -> list[str]:
    assert best.speed is not None
    device, given, days = plan.device, costs.assumed.mtbf_hours, plan.days(best.speed)
    source = f"{given:,.10g} h a device, given by hand" if given else f"{device.hours_between_failures:,} h a device: "
    source += "" if given else device.failures_source
    expected = ""
    if days is not None and lost.lost <= _ENDLESS:
        count = days * 86_400 * (1 + lost.lost) / lost.mtbf_seconds
        expected = ", fewer than 0.01 in all" if count < 0.01 else f", {digits(count, 2)} in all"
    back = duration(costs.assumed.restart_minutes * 60)
    return [
        f"failures: one in {duration(lost.mtbf_seconds)}{expected}, back in {back} ({source})",
        _saves(lost, best.speed.step_seconds),
    ]


def _saves(lost: Losses, step: float) -> str:
    """What a save takes, and the recipe's interval beside the best one."""
    stall, write = duration(lost.saves.stall), duration(lost.saves.write)
    line = (
        f"saves: {stall} of training, whole after {write}; every {lost.steps:,} steps ({duration(lost.steps * step)}) "
        f"failures and saves add {_percent(lost.lost)}"
    )
    if lost.lost - lost.least_lost < _WORTH_A_WORD:
        return f"{line}, hardly more than at the best interval"
    best = f"checkpoint.save_every_steps={lost.best_steps}"
    return f"{line}; least with {best} ({duration(lost.best_steps * step)}): {_percent(lost.least_lost)}"


def _overlap(plan: Plan, best: LayoutPlan) -> list[str]:
    faster = plan.overlapped(best)
    if best.speed is None or faster is None:
        return []
    if faster.step_seconds >= (1 - _WORTH_A_LINE) * best.speed.step_seconds:
        return []
    fields = "parallel.overlap_grad_reduce=true parallel.overlap_param_gather=true"
    return [f"with {fields}: {digits(faster.step_seconds, 3)} s a step instead of {digits(best.speed.step_seconds, 3)}"]


def _percent(part: float) -> str:
    if part > _ENDLESS:
        return f"more than {_ENDLESS} times"
    return f"{part:.1%}" if part >= 0.001 else f"{part:.2%}"
