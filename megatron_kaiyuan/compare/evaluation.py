"""What `kaiyuan eval` has measured of a run, as far as it is compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_kaiyuan.compare.intervals import Interval, normal_interval, wilson_interval
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, Form, require_form

RESULT = "evaluation.json"
# What the held-out loss is called, a domain's name after it.
HELD_OUT = "held-out loss"
_STDERR = "_stderr"


class _Domain(Form):
    nats_per_token: float


class _Positions(Form):
    """Positions in the context from `from` on, 0 the first, below `to`."""

    first: Count = Field(alias="from")
    to: Count
    nats_per_token: float


class _HeldOut(Form):
    nats_per_token: float
    bits_per_byte: float | None = None
    domains: dict[str, _Domain] = {}
    by_position: list[_Positions] = []


class _Calibration(Form):
    items: Count
    expected_calibration_error: float


class _Model(Form):
    name: str = ""
    held_out: _HeldOut | None
    tasks: dict[str, dict[str, float | str | None]]
    calibration: dict[str, _Calibration] = {}


class Evaluation(Form):
    """The newest entry of the file.

    Attributes:
        items: documents of each task.
        made_from: what each measure depends on besides the weights; equal ones may be compared.
    """

    model: _Model
    items: dict[str, Count] = {}
    made_from: dict[str, str] = {}


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation.

    Attributes:
        made_from: what it depends on besides the weights; None: the file does not say.
    """

    what: str
    unit: str
    estimate: Interval
    made_from: str | None


def read_evaluation(folder: Path, notes: list[str]) -> Evaluation | None:
    """Read a run's evaluation; where there is none, or it is damaged, a note says so."""
    path = folder / RESULT
    if not path.is_file():
        notes.append(f"no {RESULT}, which kaiyuan eval RUN_DIR writes")
        return None
    try:
        content: dict[str, Any] = read_json(path, "evaluation")
        return require_form(path, content, Evaluation, "run kaiyuan eval again")
    except UserError as error:
        notes.append(f"evaluation: {error}")
        return None


def scores(evaluation: Evaluation | None) -> Iterator[Score]:
    """Held-out loss, whole and by domain, every metric of every task, and calibration errors."""
    if evaluation is None:
        return
    held_out, made_from = evaluation.model.held_out, evaluation.made_from
    if held_out is not None:
        identity = made_from.get("held_out")
        yield Score(HELD_OUT, "nats a token", Interval(held_out.nats_per_token), identity)
        for domain, row in held_out.domains.items():
            yield Score(f"{HELD_OUT}, {domain}", "nats a token", Interval(row.nats_per_token), identity)
        if held_out.bits_per_byte is not None:
            yield Score(HELD_OUT, "bits a byte", Interval(held_out.bits_per_byte), identity)
    for task, metrics in evaluation.model.tasks.items():
        for metric, value in metrics.items():
            if isinstance(value, float) and not metric.endswith(_STDERR):
                error = metrics.get(metric + _STDERR)
                estimate = _task_interval(metric, value, error, evaluation.items.get(task))
                yield Score(task, metric, estimate, made_from.get(task))
    for task, found in evaluation.model.calibration.items():
        estimate = Interval(found.expected_calibration_error, points=found.items)
        yield Score(task, "expected calibration error", estimate, made_from.get(task))


def loss_by_position(evaluation: Evaluation | None) -> list[tuple[float, float]]:
    """Position in the context, the middle of each range by logarithm, and held-out loss there; empty without."""
    held_out = None if evaluation is None else evaluation.model.held_out
    if held_out is None:
        return []
    return [(math.sqrt((row.first + 1) * max(row.to, 1)), row.nats_per_token) for row in held_out.by_position]


def _task_interval(metric: str, value: float, error: Any, items: int | None) -> Interval:
    """By lm-eval's standard error where it is there; else of an accuracy that of so many independent documents."""
    if isinstance(error, float) and error >= 0:
        return normal_interval(value, error, items or 1)
    if metric.startswith(("acc", "exact_match")) and items and 0 <= value <= 1:
        return wilson_interval(value, items)
    return Interval(value, points=items or 1)
