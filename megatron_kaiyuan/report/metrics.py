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

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.metrics import is_recorded
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.report.monitor_rows import Layout, Monitored, MonitorRow, read_monitor_row
from megatron_kaiyuan.report.table import Table, number

# Events after which the steps beyond theirs are trained again.
RESTARTS = ("start", "resume", "rollback")
_STARTS = ("start", "resume")
# Lines that a session's time reaches to: rows, and these events. A start writes others before its own.
_DURING = ("", *RESTARTS, "startup", "checkpoint", "stop")
# How a line of the monitor begins, as it is written.
_MONITOR = b'{"event": "monitor"'
# Steps at least over which a reported loss is a mean: that of one step varies with its documents.
_FEWEST_STEPS = 10


@dataclass
class Session:
    """What one start of the run wrote.

    Attributes:
        place: rows that were written before it, those that no longer count too.
        begun, ended: time of its start and of its last line, seconds since 1970; NaN where no line has any.
        start: its event `start` or `resume`; empty where an older version wrote none.
        trained: tokens of its steps, those that no longer count too.
    """

    place: int
    begun: float = math.nan
    ended: float = math.nan
    start: dict[str, Any] = field(default_factory=dict)
    trained: float = 0.0
    _reached: float = math.nan

    def goes_to(self, tokens: float) -> None:
        """Take note of where a start or a rollback puts the run."""
        self._reached = tokens

    def trains_to(self, tokens: float) -> None:
        """Take note of a step's end."""
        self.trained += max(tokens - self._reached, 0.0) if math.isfinite(self._reached) else 0.0
        self._reached = tokens

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
        monitored: figures by tensor and layer, rising in `step`.
        repeated: rows that a restart made void, since their steps were trained again.
        unreadable: lines that hold no JSON object, as a killed process leaves them.
        sessions: of each start that wrote anything, in order.
    """

    rows: Table = field(default_factory=Table)
    events: list[dict[str, Any]] = field(default_factory=list)
    monitored: Monitored = field(default_factory=lambda: Monitored({}))
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


def read_history(path: Path, with_monitor: bool = True) -> History:
    """Read metrics; a later row of a step replaces the earlier one, and a restart voids what lay beyond its step.

    Args:
        with_monitor: read the monitor's figures, which are the larger part of some files.

    Raises:
        UserError: the file is missing or holds no step.
    """
    history = History()
    monitored: dict[int, MonitorRow] = {}
    layouts: dict[Layout, Layout] = {}
    # Rows written before a restart, and the step that it continues from.
    restarts: list[tuple[int, float]] = []
    session = Session(0)
    history.sessions.append(session)
    for row in _lines(path, with_monitor):
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
            session.trains_to(row["tokens"])
        elif row["event"] == "monitor":
            if (seen := read_monitor_row(row, layouts)) is None:
                history.unreadable += 1
            else:
                monitored[seen.step] = seen
        else:
            history.events.append(row)
            if row["event"] in RESTARTS:
                session.start = row if row["event"] in _STARTS else session.start
                last = number(row.get("step"))
                session.goes_to(0.0 if last == 0 else number(row.get("tokens")))
                restarts.append((len(history.rows), last))
                monitored = {step: kept for step, kept in monitored.items() if not step > last}
    _keep_what_counts(history, restarts)
    if not len(history.rows):
        raise UserError(f"{path}: holds no training step; train first")
    history.monitored = Monitored(monitored)
    history.unreadable += history.monitored.others
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


def _lines(path: Path, with_monitor: bool) -> Iterator[dict[str, Any] | None]:
    """Rows and events as they were written; None for a line that is neither."""
    try:
        with open(path, "rb") as file:
            for line in file:
                line = line.strip()
                if line and (with_monitor or not line.startswith(_MONITOR)):
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
    return row


def _loaded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        # Unlike orjson it accepts NaN, which older versions wrote; bytes that are not UTF-8 are replaced.
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
