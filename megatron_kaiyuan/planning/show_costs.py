"""Lines on what the best layout of a plan costs: hours, money, failures and saves."""

from __future__ import annotations

from megatron_kaiyuan.planning.failures import Losses, losses
from megatron_kaiyuan.planning.plan import LayoutPlan, Plan
from megatron_kaiyuan.planning.records import Costs

# Part of the time that a hint must win to be given.
_WORTH_A_LINE, _WORTH_A_WORD = 0.005, 0.001
# Times the training itself: beyond it a run is not worth a forecast.
_ENDLESS = 10
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def span(plan: Plan, value: float, form: str) -> str:
    """The least and the most that a planned time may turn out to be, in brackets; nothing where that is not known."""
    if plan.spread is None:
        return ""
    low, high = (format(value * part, form) for part in plan.spread)
    return f" ({low}-{high})"


def about_the_best(plan: Plan, costs: Costs) -> list[str]:
    """Device-hours, money, failures and saves of the best layout, and what it would win by overlap."""
    best = plan.layouts[0]
    lost = losses(plan, best, costs.assumed)
    if not best.fits or best.speed is None or lost is None:
        return []
    return [*_hours(plan, best, lost, costs), *_failures(plan, best, lost, costs), *_overlap(plan, best)]


def _hours(plan: Plan, best: LayoutPlan, lost: Losses, costs: Costs) -> list[str]:
    hours = None if best.speed is None else plan.device_hours(best.speed)
    if hours is None:
        return []
    if lost.lost > _ENDLESS:
        return [
            f"the best takes {hours:,.0f} device-hours of training; failures and saves add {_percent(lost.lost)} that"
        ]
    hours *= 1 + lost.lost
    line = f"the best takes {hours:,.0f} device-hours{span(plan, hours, ',.0f')}"
    if costs.price is not None:
        money = hours * costs.price
        line += f", {money:,.0f}{span(plan, money, ',.0f')} at {costs.price:g} for a device and hour"
    return [f"{line}; {_percent(lost.lost / (1 + lost.lost))} of them for failures and saves"]


def _failures(plan: Plan, best: LayoutPlan, lost: Losses, costs: Costs) -> list[str]:
    assert best.speed is not None
    device, given, days = plan.device, costs.assumed.mtbf_hours, plan.days(best.speed)
    source = f"{given:,g} h a device, given by hand" if given else f"{device.hours_between_failures:,} h a device: "
    source += "" if given else device.failures_source
    expected = ""
    if days is not None and lost.lost <= _ENDLESS:
        count = days * 86_400 * (1 + lost.lost) / lost.mtbf_seconds
        expected = f", {count:,.0f} in all" if count >= 10 else f", {count:.2g} in all"
    back = _time(costs.assumed.restart_minutes * 60)
    return [
        f"failures: one in {_time(lost.mtbf_seconds)}{expected}, back in {back} ({source})",
        _saves(lost, best.speed.step_seconds),
    ]


def _saves(lost: Losses, step: float) -> str:
    """What a save takes, and the recipe's interval beside the best one."""
    stall, write = _time(lost.saves.stall), _time(lost.saves.write)
    line = (
        f"saves: {stall} of training, whole after {write}; every {lost.steps:,} steps ({_time(lost.steps * step)}) "
        f"failures and saves add {_percent(lost.lost)}"
    )
    if lost.lost - lost.least_lost < _WORTH_A_WORD:
        return f"{line}, hardly more than at the best interval"
    best = f"checkpoint.save_every_steps={lost.best_steps}"
    return f"{line}; least with {best} ({_time(lost.best_steps * step)}): {_percent(lost.least_lost)}"


def _overlap(plan: Plan, best: LayoutPlan) -> list[str]:
    faster = plan.overlapped(best)
    if best.speed is None or faster is None:
        return []
    if faster.step_seconds >= (1 - _WORTH_A_LINE) * best.speed.step_seconds:
        return []
    fields = "parallel.overlap_grad_reduce=true parallel.overlap_param_gather=true"
    return [f"with {fields}: {faster.step_seconds:.3g} s a step instead of {best.speed.step_seconds:.3g}"]


def _time(seconds: float) -> str:
    """In the largest unit of which there is one."""
    name, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{seconds / size:.2g} {name}" if seconds < 100 * size else f"{seconds / size:,.0f} {name}"


def _percent(part: float) -> str:
    if part > _ENDLESS:
        return f"more than {_ENDLESS} times"
    return f"{part:.1%}" if part >= 0.001 else f"{part:.2%}"
