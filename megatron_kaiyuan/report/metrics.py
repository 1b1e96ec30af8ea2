"""`metrics.jsonl` of a run as one history, whatever interruptions wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.forms import Count, Form
from megatron_kaiyuan.metrics import is_recorded
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.report.table import Table, number

# Events after which the steps beyond theirs are trained again.
RESTARTS = ("start", "resume", "rollback")
_STARTS = ("start", "resume")
# Lines that a session's time reaches to: rows, and these events. A start writes others before its own.
_DURING = ("", *RESTARTS, "startup", "checkpoint", "stop")
# Steps at least over which a reported loss is a mean: that of one step varies with its documents.
_FEWEST_STEPS = 10


@dataclass
class Session:
    """What one start of the run wrote.

    Attributes:
        place: rows that were written before it, those that no longer count too.
        begun, ended: time of its start and of its last line, seconds since 1970; NaN where no line has any.
    """

    place: int
    begun: float = math.nan
    ended: float = math.nan

    def saw(self, time: float) -> None:
        """Take note of a line's time."""
        if math.isfinite(time):
            self.begun = time if math.isnan(self.begun) else self.begun
            self.ended = time


@dataclass
class History:
    """Steps that count, in order, and what happened between them.

    Attributes:
        rows: one for each logged step, rising in `step`.
        events: as written, but for the monitor's.
        monitored: figures by tensor and layer (`train/hooks/monitoring.py`), rising in `step`.
        repeated: rows that a restart made void, since their steps were trained again.
        unreadable: lines that hold no JSON object, as a killed process leaves them.
        sessions: of each start that wrote anything, in order.
    """

    rows: Table = field(default_factory=Table)
    events: list[dict[str, Any]] = field(default_factory=list)
    monitored: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0
    unreadable: int = 0
    sessions: list[Session] = field(default_factory=list)

    def column(self, name: str) -> NDArray[np.float64]:
        """One figure over the rows; NaN where a row has none."""
        return self.rows.column(name)

    def recorded(self) -> list[str]:
        """Columns that rooms have recorded and that hold a number."""
        return sorted(name for name in self.rows.names if is_recorded(name) and np.isfinite(self.column(name)).any())

    def losses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean loss of the steps since the row before, NaN where there is none, and of how many steps.

        Rows of older versions know the loss of their own step alone.
        """
        means, steps = self.column("loss_mean"), self.column("loss_steps")
        return np.where(np.isnan(means), self.column("loss"), means), np.where(np.isnan(steps), 1.0, steps)

    def last_loss(self) -> tuple[float, int]:
        """Mean loss at the end of the run, NaN where there is none, and over how many steps.

        They are those of the last rows: of a whole interval between rows at least, as the last one may be short, and
        10 at least.
        """
        means, steps = self.losses()
        steps, means = steps[np.isfinite(means)], means[np.isfinite(means)]
        if not len(means):
            return math.nan, 0
        wanted = min(max(steps.max(), _FEWEST_STEPS), steps.sum())
        first = len(steps) - 1 - int(np.argmax(np.cumsum(steps[::-1]) >= wanted))
        return float(np.average(means[first:], weights=steps[first:])), int(steps[first:].sum())

    def trained_seconds(self) -> NDArray[np.float64]:
        """Wall clock at each row without the pauses between a session's last line and the next start; NaN: not known.

        All else counts: building, validation, checkpoints, and steps that a restart or rollback made void. The time of
        the first session begins at its start event, or at its first row where an older version wrote none.
        """
        spans = [session.ended - session.begun for session in self.sessions]
        before = np.concatenate([[0.0], np.cumsum(np.nan_to_num(spans))])
        first = np.searchsorted([session.place for session in self.sessions], self.rows.places, side="right") - 1
        begun = np.array([session.begun for session in self.sessions])
        return before[first] + self.column("time") - begun[first]

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """Events at which training went on from a checkpoint."""
        return [event for event in self.events if event["event"] == "resume"]

    def tokens_at(self, step: int) -> float:
        """Token position of a step, between logged steps by proportion."""
        steps = np.concatenate([[0.0], self.rows.steps])
        tokens = np.concatenate([[0.0], self.rows.tokens])
        return float(np.interp(step, steps, tokens))


def read_history(path: Path) -> History:
    """Read metrics; a later row of a step replaces the earlier one, and a restart voids what lay beyond its step.

    Raises:
        UserError: the file is missing or holds no step.
    """
    history = History()
    monitored: dict[int, dict[str, Any]] = {}
    # Rows written before a restart, and the step that it continues from.
    restarts: list[tuple[int, float]] = []
    session = Session(0)
    history.sessions.append(session)
    for row in _lines(path):
        if row is None:
            history.unreadable += 1
            continue
        if row.get("event") in _STARTS and not math.isnan(session.begun):
            session = Session(len(history.rows))
            history.sessions.append(session)
        if row.get("event", "") in _DURING:
            session.saw(number(row.get("time")))
        if "event" not in row:
            history.rows.add(row)
        elif row["event"] == "monitor":
            monitored[row["step"]] = row
        else:
            history.events.append(row)
            if row["event"] in RESTARTS:
                last = number(row.get("step"))
                restarts.append((len(history.rows), last))
                monitored = {step: kept for step, kept in monitored.items() if not step > last}
    _keep_what_counts(history, restarts)
    if not len(history.rows):
        raise UserError(f"{path}: holds no training step; train first")
    history.monitored = [monitored[step] for step in sorted(monitored)]
    # What is watched may change when a run is resumed; figures are of what is watched now.
    alike = [row for row in history.monitored if _shape(row) == _shape(history.monitored[-1])]
    history.unreadable += len(history.monitored) - len(alike)
    history.monitored = alike
    return history


def _keep_what_counts(history: History, restarts: list[tuple[int, float]]) -> None:
    """Leave out rows that a later row of the same step replaces, or a later restart from an earlier step."""
    steps = history.rows.steps
    lowest = np.full(len(steps) + 1, np.inf)
    for place, step in restarts:
        lowest[place] = np.fmin(lowest[place], step)
    # Of each row the lowest step that a restart after it continues from.
    lowest = np.minimum.accumulate(lowest[::-1])[::-1][1:]
    places = np.flatnonzero(~(steps > lowest))
    places = places[np.argsort(steps[places], kind="stable")]
    kept = places[np.append(np.diff(steps[places]) > 0, True)] if len(places) else places
    history.rows.keep(kept)
    history.repeated = len(steps) - len(kept)


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Rows and events as they were written; None for a line that is neither."""
    try:
        with open(path, "rb") as file:
            for line in file:
                if line := line.strip():
                    yield _parse(line)
    except OSError as error:
        raise UserError(
            f"{path}: metrics cannot be read ({error.strerror}); name the folder of a run{near_run(path.parent)}"
        ) from error


def _parse(line: bytes) -> dict[str, Any] | None:
    row = _loaded(line)
    if not isinstance(row, dict) or not isinstance(row.get("event", ""), str):
        return None
    if "event" not in row:
        return row if _is_count(row.get("step")) and _is_count(row.get("tokens")) else None
    return row if row["event"] != "monitor" or _is_monitors(row) else None


def _loaded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        # It takes NaN, as older versions wrote it, and bytes that are no text.
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None


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
