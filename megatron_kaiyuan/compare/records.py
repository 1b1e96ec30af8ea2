"""A comparison as a record for programs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from megatron_kaiyuan.compare.compare import Comparison
from megatron_kaiyuan.compare.intervals import LEVEL, Interval
from megatron_kaiyuan.compare.measures import Difference, Measure
from megatron_kaiyuan.compare.runs import Run


def as_record(comparison: Comparison) -> dict[str, Any]:
    """Lists by run are in the order of `runs`; null: not known, or no difference to the first run."""
    return {
        "runs": [_run(run) for run in comparison.runs],
        "window": {"after_token": comparison.window.begin, "to_token": comparison.window.end},
        "level": LEVEL,
        "measures": [_measure(measure) for measure in comparison.measures],
        "configuration": [asdict(field) for field in comparison.configuration],
        "environment": [asdict(field) for field in comparison.environment],
        "notes": comparison.notes,
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "steps": run.steps,
        "tokens": run.end,
        "flops": None if run.flops is None else float(run.flops[-1]),
        "seconds": _or_none(float(run.seconds[-1])),
        "evaluated": None if run.evaluation is None else run.evaluation.model.name,
        "notes": run.notes,
    }


def _measure(measure: Measure) -> dict[str, Any]:
    return {
        "what": measure.what,
        "unit": measure.unit,
        "better": measure.better,
        "values": [None if one is None else _interval(one) for one in measure.estimates],
        "differences": [None if one is None else _difference(measure, one) for one in measure.differences],
        "note": measure.note,
    }


def _difference(measure: Measure, found: Difference) -> dict[str, Any]:
    return {**_interval(found.interval), "paired": found.paired, "verdict": found.verdict(measure.better) or None}


def _interval(interval: Interval) -> dict[str, Any]:
    bounds = {"low": _or_none(interval.low), "high": _or_none(interval.high)}
    return {"value": interval.value, **bounds, "points": interval.points}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
