"""How a run is doing, from what lies in its folder: for a terminal, a monitor, another machine. Needs no torch."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megatron_kaiyuan.checkpoint import layout, lock
from megatron_kaiyuan.cluster.bad_nodes import read_bad_nodes
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.forms import Count, Form
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.report.metrics import RESTARTS

# Loss and speed are means and medians of so many rows.
_ROWS = 20
# A job hangs when a step takes this many times as long as usual, and this long at least, or anything else longer than
# its watchdog allows. Of a job of an older version, whose note has no work, the interval between rows counts.
_HANG_STEPS = 10
_HANG_SECONDS = 300.0
_STARTS = ("start", "resume")
_RUNNING_WELL = ("starting", "training", "finished")


@dataclass(frozen=True)
class Ranks:
    """Seconds that ranks take to their own gradients, and the slowest one with its node."""

    least: float
    median: float
    largest: float
    slowest_rank: int
    slowest_node: str

    def __str__(self) -> str:
        times = f"{self.least:.3g} s at least, {self.median:.3g} s in the middle, {self.largest:.3g} s at most"
        return f"ranks to their own gradients: {times}, by rank {self.slowest_rank} on {self.slowest_node}"


@dataclass(frozen=True)
class Status:
    """One look at a run. None: not known.

    Attributes:
        state: "starting" (a job holds the folder and has written no row yet), "training", "hung" (it holds the folder
            and does not come further), "finished", "stopped" (asked to: the same command resumes), "died" (no job, and
            no line that it stopped).
        loss: nats a token, mean of the last rows.
        row_age: seconds since the last row, by this machine's clock.
        seconds_left: at the median speed of the last rows; of a job that trains.
        device_hours: processes times hours between each start and its last row.
        holder: note of the job that holds the folder: host, pid, started, what it is doing at which step.
        quiet_seconds: how long it has been doing that.
        ranks: of the newest row that has it.
        checkpoint: name of the newest whole step.
        event: the last one, as written.
        reason: what the job's own check or watchdog said of its end, where it named bad nodes.
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
    quiet_seconds: float | None
    ranks: Ranks | None
    checkpoint: str | None
    checkpoint_age: float | None
    event: dict[str, Any] | None
    reason: str | None

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
        if self.ranks is not None:
            lines.append(f"  {self.ranks}")
        saved = "no checkpoint" if self.checkpoint is None else f"checkpoint {self.checkpoint}"
        age = "" if self.checkpoint_age is None else f", {_duration(self.checkpoint_age)} old"
        lines.append(f"  {saved}{age}; {self.device_hours:,.2f} device-hours in {self.starts} starts")
        if self.holder:
            since = lock.date_of(self.holder.get("started"))
            work = (
                ""
                if self.quiet_seconds is None
                else f": {self.holder.get('doing')} for {_duration(self.quiet_seconds)}"
            )
            lines.append(
                f"  held by process {self.holder.get('pid')} on {self.holder.get('host')}, since {since}{work}"
            )
        if self.event:
            at = "" if self.event.get("step") is None else f" at step {self.event['step']}"
            lines.append(f"  last event: {self.event['event']}{at}, {lock.date_of(self.event.get('time'))}")
        if self.reason:
            lines.append(f"  {self.reason}")
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
    starts = [event for event in events if event.event in _STARTS]
    begun = starts[-1] if starts else _Line()
    row = rows[-1] if rows else None
    progress = row if row is not None and row.time >= begun.time else begun
    state = _state(held, events, begun.time, rows, now)
    per_step = _median(rows, "seconds_per_step")
    left = (begun.total_steps or 0) - progress.step
    newest = layout.steps(run_dir)[-1:]
    manifest = layout.step_folder(run_dir, newest[0]) / layout.MANIFEST if newest else None
    losses = [one.loss for one in rows if one.loss is not None]
    return Status(
        run_dir=str(run_dir),
        state=state,
        step=progress.step,
        total_steps=begun.total_steps,
        tokens=progress.tokens,
        phase=row.phase if row else None,
        loss=statistics.fmean(losses) if losses else None,
        tokens_per_second=_median(rows, "tokens_per_second"),
        row_age=max(now - row.time, 0.0) if row else None,
        seconds_left=left * per_step if begun.total_steps and per_step and state == "training" else None,
        device_hours=_device_hours(events, row),
        starts=len(starts),
        holder=held,
        quiet_seconds=lock.quiet_seconds(held, now) if held else None,
        ranks=next((found for line in reversed(rows) if (found := line.ranks)), None),
        checkpoint=manifest.parent.name if manifest else None,
        checkpoint_age=max(now - manifest.stat().st_mtime, 0.0) if manifest else None,
        event=events[-1].as_written if events else None,
        reason=None if state in _RUNNING_WELL else _reason(run_dir, begun.time),
    )


def _reason(run_dir: Path, since: float) -> str | None:
    named = read_bad_nodes(run_dir)
    return None if named is None or named.time < since else f"bad nodes {', '.join(named.hosts)}: {excerpt(named.why)}"


def _state(held: dict[str, Any] | None, events: list[_Line], begun: float, rows: list[_Line], now: float) -> str:
    if held is not None:
        newest = max(begun, rows[-1].time if rows else 0.0)
        if _hangs(held, rows, newest, now):
            return "hung"
        started = held.get("started")
        return "starting" if isinstance(started, int | float) and newest < started else "training"
    stops = [event for event in events if event.event == "stop" and event.time >= begun]
    if stops:
        return "finished" if stops[-1].finished else "stopped"
    return "died"


def _hangs(held: dict[str, Any], rows: list[_Line], newest: float, now: float) -> bool:
    quiet = lock.quiet_seconds(held, now)
    if quiet is None:
        intervals = [after.time - before.time for before, after in itertools.pairwise(rows)]
        usual, quiet = statistics.median(intervals) if intervals else 0.0, now - newest
    elif held.get("doing") == "step":
        usual = _median(rows, "seconds_per_step") or 0.0
    else:
        return lock.hangs(held, now)
    return lock.hangs(held, now) or quiet > max(_HANG_SECONDS, _HANG_STEPS * usual)


_Seconds = Annotated[float, Field(ge=0, lt=1e9)] | None


class _Line(Form):
    """A step, or an event, of `metrics.jsonl`, as far as it is shown; what does not fit is left out, as torn lines are.

    Attributes:
        row_time: of an event, when the last step before it was written.
    """

    event: str | None = None
    step: Count = 0
    tokens: Count = 0
    time: Annotated[float, Field(ge=0, lt=1e11)] = 0.0
    total_steps: Count | None = None
    world_size: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    finished: bool = False
    phase: str | None = None
    loss: float | None = None
    tokens_per_second: Annotated[float, Field(ge=0, lt=1e15)] | None = None
    seconds_per_step: _Seconds = None
    rank_seconds_min: _Seconds = None
    rank_seconds_median: _Seconds = None
    rank_seconds_max: _Seconds = None
    slowest_rank: Count | None = None
    slowest_node: str | None = None
    row_time: float = 0.0

    @property
    def ranks(self) -> Ranks | None:
        least, median, largest = self.rank_seconds_min, self.rank_seconds_median, self.rank_seconds_max
        rank, node = self.slowest_rank, self.slowest_node
        if least is None or median is None or largest is None or rank is None or node is None:
            return None
        return Ranks(least, median, largest, rank, node)

    @property
    def as_written(self) -> dict[str, Any]:
        fields = self.model_dump(exclude_unset=True, exclude={"row_time"})
        return {name: value for name, value in fields.items() if name != "table"}


def _tail(path: Path) -> tuple[list[_Line], list[_Line]]:
    """Events (but the monitor's) and the last rows that count, in order.

    Rows are parsed where they are used only: a month of them is half a gigabyte.
    """
    events: list[_Line] = []
    last: list[bytes] = []
    for line in _lines(path):
        if b'"event"' not in line:
            last.append(line)
            del last[: -2 * _ROWS]
        elif b'"event": "monitor"' not in line and (event := _parse(line)) and event.event is not None:
            before = _parsed(last)
            events.append(event.model_copy(update={"row_time": before[-1].time if before else 0.0}))
            if event.event in RESTARTS:
                # Rows beyond the step that training continues from are void.
                last = [line for line in last if (row := _parse(line)) and row.step <= event.step]
    return events, _parsed(last)[-_ROWS:]


def _parsed(lines: list[bytes]) -> list[_Line]:
    return [row for row in map(_parse, lines) if row is not None and row.time]


def _parse(line: bytes) -> _Line | None:
    try:
        return _Line.model_validate(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: metrics cannot be read ({error.strerror}); name the folder of a run") from error


def _device_hours(events: list[_Line], row: _Line | None) -> float:
    """Each start lasted until the last row or event before the next one."""
    seconds, begun, devices, alive = 0.0, 0.0, 0, 0.0
    for event in events:
        if event.event in _STARTS:
            seconds += devices * (max(alive, event.row_time, begun) - begun)
            begun, devices = event.time, event.world_size
        alive = event.time
    return (seconds + devices * (max(alive, row.time if row else 0.0, begun) - begun)) / 3600


def _median(rows: list[_Line], name: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return statistics.median(values) if values else None


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
