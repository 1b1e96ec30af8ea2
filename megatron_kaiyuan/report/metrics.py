"""`metrics.jsonl` of a run as one history, whatever interruptions wrote it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.forms import Count, Form
from megatron_kaiyuan.metrics import is_recorded
from megatron_kaiyuan.nearby import near_run

# Events after which the steps beyond theirs are trained again.
RESTARTS = ("start", "resume", "rollback")
# Steps at least over which a reported loss is a mean: that of one step varies with its documents.
_FEWEST_STEPS = 10


@dataclass
class History:
    """Steps that count, in order, and what happened between them.

    Attributes:
        rows: one for each logged step, rising in `step`.
        events: as written, but for the monitor's.
        monitored: figures by tensor and layer (`train/hooks/monitoring.py`), rising in `step`.
        repeated: rows that a restart made void, since their steps were trained again.
        unreadable: lines that hold no JSON object, as a killed process leaves them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    monitored: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0
    unreadable: int = 0

    def column(self, name: str) -> NDArray[np.float64]:
        """One figure over the rows; NaN where a row has none."""
        return np.array([_number(row.get(name)) for row in self.rows], dtype=np.float64)

    def recorded(self) -> list[str]:
        """Columns that rooms have recorded and that hold a number."""
        names = sorted({name for row in self.rows for name in row if is_recorded(name)})
        return [name for name in names if np.isfinite(self.column(name)).any()]

    def last_loss(self) -> tuple[float, int]:
        """Mean loss at the end of the run, NaN where there is none, and over how many steps.

        They are those of the last rows: of a whole interval between rows at least, as the last one may be short, and
        10 at least. Rows of older versions know the loss of their own step alone.
        """
        means, steps = self.column("loss_mean"), self.column("loss_steps")
        means = np.where(np.isnan(means), self.column("loss"), means)
        steps = np.where(np.isnan(steps), 1.0, steps)[np.isfinite(means)]
        means = means[np.isfinite(means)]
        if not len(means):
            return math.nan, 0
        wanted = min(max(steps.max(), _FEWEST_STEPS), steps.sum())
        first = len(steps) - 1 - int(np.argmax(np.cumsum(steps[::-1]) >= wanted))
        return float(np.average(means[first:], weights=steps[first:])), int(steps[first:].sum())

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """Events at which training went on from a checkpoint."""
        return [event for event in self.events if event["event"] == "resume"]

    def tokens_at(self, step: int) -> float:
        """Token position of a step, between logged steps by proportion."""
        steps = np.concatenate([[0.0], self.column("step")])
        tokens = np.concatenate([[0.0], self.column("tokens")])
        return float(np.interp(step, steps, tokens))


def read_history(path: Path) -> History:
    """Read metrics; a later row of a step replaces the earlier one, and a restart voids what lay beyond its step.

    Raises:
        UserError: the file is missing or holds no step.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: metrics cannot be read ({error.strerror}); name the folder of a run{near_run(path.parent)}"
        ) from error
    history = History()
    by_step: dict[int, dict[str, Any]] = {}
    monitored: dict[int, dict[str, Any]] = {}
    written = 0
    for line in filter(None, map(str.strip, lines)):
        row = _parse(line)
        if row is None:
            history.unreadable += 1
        elif row.get("event") == "monitor":
            monitored[row["step"]] = row
        elif "event" in row:
            history.events.append(row)
            if row["event"] in RESTARTS:
                last = _number(row.get("step"))
                by_step, monitored = (
                    {step: kept for step, kept in rows.items() if not step > last} for rows in (by_step, monitored)
                )
        else:
            written += 1
            by_step[row["step"]] = row
    if not by_step:
        raise UserError(f"{path}: holds no training step; train first")
    history.rows = [by_step[step] for step in sorted(by_step)]
    history.monitored = [monitored[step] for step in sorted(monitored)]
    # What is watched may change when a run is resumed; figures are of what is watched now.
    alike = [row for row in history.monitored if _shape(row) == _shape(history.monitored[-1])]
    history.unreadable += len(history.monitored) - len(alike)
    history.monitored = alike
    history.repeated = written - len(by_step)
    return history


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("event", ""), str):
        return None
    if "event" not in row:
        return row if _is_count(row.get("step")) and _is_count(row.get("tokens")) else None
    return row if row["event"] != "monitor" or _is_monitors(row) else None


class _MonitorRow(Form):
    step: Count
    tokens: Count
    activations: dict[str, dict[str, list[float | None]]]
    gradients: dict[str, dict[str, list[float | None]]]
    update_to_weight: dict[str, list[float | None]] | None


def _is_monitors(row: dict[str, Any]) -> bool:
    try:
        found = _MonitorRow.model_validate(row)
    except ValidationError:
        return False
    wanted = {name: {"headroom_bits"} for name in found.activations}
    wanted |= {name: {"headroom_bits", "l1"} for name in ("embedding", "residual")}
    activations = all(figures <= found.activations.get(name, {}).keys() for name, figures in wanted.items())
    activations = activations and all(values for of in found.activations.values() for values in of.values())
    updates = found.update_to_weight
    return activations and (updates is None or found.gradients.keys() <= updates.keys())


def _shape(row: dict[str, Any]) -> Any:
    """Tensors, figures and places of a monitor's row."""
    places = [(name, figure, len(values)) for name, of in row["activations"].items() for figure, values in of.items()]
    return sorted(places), sorted(row["gradients"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
