"""How a run is doing, from what lies in its folder: for a terminal, a monitor, another machine. Needs no torch."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from megatron_kaiyuan.checkpoint import layout, lock
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.report.metrics import RESTARTS

# Loss and speed are means and medians of so many rows.
_ROWS = 20
# A job is stalled when no row has come for this many times the usual interval, and for this long at least: saves, a
# second look at an overflow and the first step after a start take longer than a step.
_STALLED_INTERVALS = 10
_STALLED_SECONDS = 300.0
_STARTS = ("start", "resume")
_RUNNING_WELL = ("starting", "training", "finished")


@dataclass(frozen=True)
class Status:
    """One look at a run. None: not known.

    Attributes:
        state: "starting" (a job holds the folder and has written no row yet), "training", "stalled" (it holds the
            folder and writes none), "finished", "stopped" (asked to: the same command resumes), "died" (no job, and no
            line that it stopped).
        loss: nats a token, mean of the last rows.
        row_age: seconds since the last row, by this machine's clock.
        seconds_left: at the median speed of the last rows; of a job that trains.
        device_hours: processes times hours between each start and its last row.
        holder: note of the job that holds the folder: host, pid, started.
        checkpoint: name of the newest whole step.
        event: the last one, as written.
    """

    run_dir: str
    state: str
    step: int
    total_steps: int | None
    tokens: int
    phase: str | None
    loss: float | None
    tokens_per_second: float | None
    row_age: float | None
    seconds_left: float | None
    device_hours: float
    starts: int
    holder: dict[str, Any] | None
    checkpoint: str | None
    checkpoint_age: float | None
    event: dict[str, Any] | None

    @property
    def exit_code(self) -> int:
        """Return 0 while all is well, 1 where somebody has to look or start the run again."""
        return 0 if self.state in _RUNNING_WELL else 1

    def lines(self) -> list[str]:
        share = f" of {self.total_steps:,} ({self.step / self.total_steps:.1%})" if self.total_steps else ""
        phase = f", {self.phase}" if self.phase else ""
        lines = [f"{self.run_dir}: {self.state}, step {self.step:,}{share}, {self.tokens:,} tokens{phase}"]
        figures = [
            self.loss is not None and f"loss {self.loss:.4f}",
            self.tokens_per_second is not None and f"{self.tokens_per_second:,.0f} tokens/s",
            self.row_age is not None and f"last row {_duration(self.row_age)} ago",
            self.seconds_left is not None and f"{_duration(self.seconds_left)} left",
        ]
        if words := [figure for figure in figures if figure]:
            lines.append("  " + ", ".join(words))
        saved = "no checkpoint" if self.checkpoint is None else f"checkpoint {self.checkpoint}"
        age = "" if self.checkpoint_age is None else f", {_duration(self.checkpoint_age)} old"
        lines.append(f"  {saved}{age}; {self.device_hours:,.2f} device-hours in {self.starts} starts")
        if self.holder:
            since = _date(self.holder.get("started"))
            lines.append(f"  held by process {self.holder.get('pid')} on {self.holder.get('host')}, since {since}")
        if self.event:
            at = "" if self.event.get("step") is None else f" at step {self.event['step']}"
            lines.append(f"  last event: {self.event['event']}{at}, {_date(self.event.get('time'))}")
        return lines


def read_status(run_dir: Path, now: float | None = None) -> Status:
    """Look at a run once.

    Args:
        now: seconds since 1970; default: this machine's clock.

    Raises:
        UserError: the folder holds no run.
    """
    now = time.time() if now is None else now
    events, rows = _tail(run_dir / "metrics.jsonl")
    held = lock.holder(run_dir)
    if not events and not rows and held is None:
        raise UserError(
            f"{run_dir}: holds no metrics.jsonl with a start in it, and no job; name a run's folder{near_run(run_dir)}"
        )
    starts = [event for event in events if event["event"] in _STARTS]
    begun = starts[-1] if starts else {}
    row = rows[-1] if rows else {}
    row_time = _number(row.get("time"))
    progress = row if row_time is not None and row_time >= (_number(begun.get("time")) or 0.0) else begun
    interval = _interval(rows)
    state = _state(held, events, begun, row_time, interval, now)
    step, total = int(progress.get("step") or 0), begun.get("total_steps")
    speed = _median(rows, "tokens_per_second")
    per_step = _median(rows, "seconds_per_step")
    newest = layout.steps(run_dir)[-1:]
    manifest = layout.step_folder(run_dir, newest[0]) / layout.MANIFEST if newest else None
    return Status(
        run_dir=str(run_dir),
        state=state,
        step=step,
        total_steps=total,
        tokens=int(progress.get("tokens") or 0),
        phase=row.get("phase"),
        loss=_mean(rows, "loss"),
        tokens_per_second=speed,
        row_age=None if row_time is None else max(now - row_time, 0.0),
        seconds_left=(total - step) * per_step if total and per_step and state == "training" else None,
        device_hours=_device_hours(events, row_time),
        starts=len(starts),
        holder=held,
        checkpoint=manifest.parent.name if manifest else None,
        checkpoint_age=max(now - manifest.stat().st_mtime, 0.0) if manifest else None,
        event=_as_written(events[-1]) if events else None,
    )


def _state(
    held: dict[str, Any] | None,
    events: list[dict[str, Any]],
    begun: dict[str, Any],
    row_time: float | None,
    interval: float,
    now: float,
) -> str:
    begun_at = _number(begun.get("time")) or 0.0
    if held is not None:
        newest = max(begun_at, row_time or 0.0)
        if newest < (_number(held.get("started")) or 0.0):
            return "starting"
        return "stalled" if now - newest > max(_STALLED_SECONDS, _STALLED_INTERVALS * interval) else "training"
    stops = [event for event in events if event["event"] == "stop" and (_number(event.get("time")) or 0.0) >= begun_at]
    if stops:
        return "finished" if stops[-1].get("finished") else "stopped"
    return "died"


def _tail(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events (but the monitor's) and the last rows that count, in order.

    Rows are parsed where they are used only: a month of them is half a gigabyte.
    """
    events: list[dict[str, Any]] = []
    last: list[bytes] = []
    for line in _lines(path):
        if b'"event"' not in line:
            last.append(line)
            del last[: -2 * _ROWS]
        elif b'"event": "monitor"' not in line and (event := _parse(line)) and isinstance(event.get("event"), str):
            before = _rows(last)
            events.append(event | {"row_time": _number(before[-1].get("time")) if before else None})
            if event["event"] in RESTARTS:
                # Rows beyond the step that training continues from are void.
                since = _number(event.get("step")) or 0.0
                last = [line for line in last if not _is_beyond(line, since)]
    return events, _rows(last)[-_ROWS:]


def _rows(lines: list[bytes]) -> list[dict[str, Any]]:
    return [row for row in map(_parse, lines) if row and isinstance(row.get("step"), int)]


def _is_beyond(line: bytes, step: float) -> bool:
    return any(row["step"] > step for row in _rows([line]))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: metrics cannot be read ({error.strerror}); name the folder of a run") from error


def _as_written(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("row_time", "table")}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _device_hours(events: list[dict[str, Any]], row_time: float | None) -> float:
    """Each start lasted until the last row or event before the next one."""
    seconds, begun, devices, alive = 0.0, 0.0, 0, 0.0
    for event in events:
        when = _number(event.get("time"))
        if when is None:
            continue
        if event["event"] in _STARTS:
            seconds += devices * (max(alive, event["row_time"] or 0.0, begun) - begun)
            begun, devices = when, int(_number(event.get("world_size")) or 1)
        alive = when
    return (seconds + devices * (max(alive, row_time or 0.0, begun) - begun)) / 3600


def _interval(rows: list[dict[str, Any]]) -> float:
    """Median seconds between rows; 0 without two of them."""
    times = [found for row in rows if (found := _number(row.get("time"))) is not None]
    return statistics.median(after - before for before, after in itertools.pairwise(times)) if times[1:] else 0.0


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [found for row in rows if (found := _number(row.get(name))) is not None]
    return statistics.fmean(values) if values else None


def _median(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [found for row in rows if (found := _number(row.get(name))) is not None]
    return statistics.median(values) if values else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _date(seconds: Any) -> str:
    number = _number(seconds)
    return "an unknown time" if number is None else f"{datetime.fromtimestamp(number):%Y-%m-%d %H:%M:%S}"
