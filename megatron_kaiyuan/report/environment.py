"""What a run was computed with, and what it cost."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import numpy as np

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.planning.speed import flops_per_token
from megatron_kaiyuan.report.happened import time_in_words
from megatron_kaiyuan.report.metrics import History, Session
from megatron_kaiyuan.report.table import number


def environment_rows(history: History) -> list[tuple[str, str]]:
    """(what, value) of the newest start that says so; several values where starts differ."""
    found: dict[str, list[str]] = {}
    for event in history.events:
        for what, value in _facts(event):
            values = found.setdefault(what, [])
            if value not in values[-1:]:
                values.append(value)
    return [(what, " → ".join(values)) for what, values in found.items()]


def _facts(event: dict[str, Any]) -> list[tuple[str, str]]:
    if event["event"] in ("start", "resume"):
        facts = [("ranks", event.get("world_size")), ("platform", event.get("platform"))]
    elif event["event"] == "utilization":
        peak = event.get("peak_tflops")
        facts = [("device", event.get("device")), ("precision", event.get("precision"))]
        facts += [("peak of a device", f"{peak} TFLOP/s ({event.get('peak_source')})")] if peak else []
    elif event["event"] == "environment":
        facts = [(what, event.get(what)) for what in ("nodes", "host", "system", "cores")]
        facts += [("git", _git(event.get("git")))]
        versions = event.get("versions")
        facts += [(f"version of {name}", one) for name, one in (versions.items() if isinstance(versions, dict) else ())]
    else:
        facts = []
    return [(what, str(value)) for what, value in facts if value is not None]


def _git(state: Any) -> str:
    if not isinstance(state, dict):
        return "not a checkout"
    return f"{state.get('commit')}{', with changes that are not committed' if state.get('dirty') else ''}"


def implementation_rows(history: History) -> list[dict[str, str]]:
    """Operation, implementation and why, as the last start chose them."""
    tables = [event.get("table") for event in history.events if event["event"] == "implementations"]
    rows = tables[-1] if tables and isinstance(tables[-1], list) else []
    return [
        {name: str(row.get(name, "")) for name in ("op", "implementation", "why")}
        for row in rows
        if isinstance(row, dict)
    ]


def cost_rows(history: History, run: RunConfig | None) -> list[dict[str, Any]]:
    """What each start cost. None: not known."""
    per_token = _flops_per_token(history, run)
    return [
        {
            "begun": time_in_words(session.begun),
            "step": session.start.get("step", 0),
            "devices": devices if (devices := _devices(session)) else None,
            "wall": str(timedelta(seconds=round(_seconds(session)))),
            "device_hours": devices * _seconds(session) / 3600 if devices else None,
            "tokens": round(session.trained),
            "flops": session.trained * per_token if per_token else None,
        }
        for session in history.sessions
        if session.trained or math.isfinite(session.begun)
    ]


def total_cost(history: History, run: RunConfig | None) -> dict[str, Any]:
    """The sum over all starts, and what part of the tokens no longer counts."""
    rows = cost_rows(history, run)
    trained = sum(row["tokens"] for row in rows)
    counts = int(history.rows.tokens[-1])
    hours = [row["device_hours"] for row in rows]
    flops = [row["flops"] for row in rows]
    return {
        "wall": str(timedelta(seconds=round(sum(_seconds(session) for session in history.sessions)))),
        "device_hours": None if None in hours else sum(hours),
        "flops": None if None in flops else sum(flops),
        "tokens": trained,
        # Of a run of an older version, whose starts do not say where they begin, the sum misses a few steps.
        "again": max(trained - counts, 0) / trained if trained else 0.0,
    }


def _devices(session: Session) -> int:
    devices = session.start.get("world_size")
    return devices if isinstance(devices, int) and not isinstance(devices, bool) and 0 < devices < 1 << 31 else 0


def _seconds(session: Session) -> float:
    return float(np.nan_to_num(max(session.ended - session.begun, 0.0)))


def _flops_per_token(history: History, run: RunConfig | None) -> float | None:
    """Forward and backward, attention over all pairs of tokens, as the rows' MFU counts."""
    said = [number(event.get("flops_per_token")) for event in history.events if event["event"] == "utilization"]
    if said and math.isfinite(said[-1]):
        return said[-1]
    return None if run is None else flops_per_token(run, causal=False)
