"""A few steps under torch's profiler: a trace to look at, and where their time went, by part and by operator."""

from __future__ import annotations

import bisect
import gzip
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import DeviceType

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import describe
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.parts import PARTS, part_named, record_parts
from megatron_kaiyuan.train.session import Session

log = logging.getLogger(__name__)

# The first steps of a process reserve memory and choose kernels.
WARM_UP_STEPS = 3
REST = "everything else"
_TRACE, _TABLE = "trace.json.gz", "table.txt"
_OPERATORS = 50


def profiling(run: RunConfig, platform: Platform, sinks: Sinks) -> list[Hook]:
    """The hook that the recipe asks for, on rank 0, or none."""
    if not run.monitor.profile_steps or torch.distributed.get_rank() != 0:
        return []
    if platform.name == "npu":
        log.warning(
            "monitor.profile_steps is left out: on platform npu torch_npu puts a profiler of its own in the place of "
            "torch's; use msprof there"
        )
        return []
    return [Profiling(run, sinks)]


class Profiling(Hook):
    """`RUN_DIR/profile/step_N`, N the first step that was profiled, and an event `profile`.

    Ahead of the other hooks: a profile goes from its turn before a step to its turn before a later one, so that it
    holds what they do, or to its turn at the end. A step that a rollback takes back counts as one.
    """

    def __init__(self, run: RunConfig, sinks: Sinks):
        self._run_dir, self._wanted, self._sinks = run.run_dir, run.monitor.profile_steps, sinks
        self._begun = 0
        self._first_step = 0
        self._started = 0.0
        self._profiler: torch.profiler.profile | None = None

    def before_step(self, session: Session) -> None:
        if self._begun == WARM_UP_STEPS:
            self._begin(session)
        elif self._begun == WARM_UP_STEPS + self._wanted:
            self._end(session)
        self._begun += 1

    def finish(self, session: Session) -> None:
        if self._begun <= WARM_UP_STEPS:
            self._tell_problem(session, f"no step came after the first {WARM_UP_STEPS}, which are left out")
        self._end(session)

    def _begin(self, session: Session) -> None:
        try:
            # Of the host and, where there is one, of the GPU.
            profiler = torch.profiler.profile()
            profiler.start()
        except Exception as error:  # no profile is worth a run
            self._tell_problem(session, f"torch's profiler does not start: {error}")
            return
        self._profiler = profiler
        record_parts(True)
        self._first_step = session.state.progress.step + 1
        self._started = time.perf_counter()

    def _end(self, session: Session) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        session.state.platform.synchronize()
        seconds = time.perf_counter() - self._started
        record_parts(False)
        folder = self._run_dir / "profile" / f"step_{self._first_step}"
        steps = self._begun - WARM_UP_STEPS
        try:
            profiler.stop()
            title = (
                f"{steps} steps from step {self._first_step}, rank 0 of {torch.distributed.get_world_size()}, "
                f"{session.state.platform.device_name()}"
            )
            write_profile(folder, profiler, title, steps, seconds)
        except Exception as error:  # no profile is worth a run
            problem = describe(error) if isinstance(error, OSError) else str(error)
            self._tell_problem(session, problem)
            return
        self._sinks.event(
            "profile",
            step=session.state.progress.step,
            first_step=self._first_step,
            steps=steps,
            seconds_per_step=round(seconds / steps, 4),
            trace=str(folder / _TRACE),
            by_part_and_operator=str(folder / _TABLE),
        )

    def _tell_problem(self, session: Session, problem: str) -> None:
        log.warning(f"no profile: {problem}")
        self._sinks.event("profile", step=session.state.progress.step, trace=None, problem=problem)


def write_profile(folder: Path, profiler: torch.profiler.profile, title: str, steps: int, seconds: float) -> None:
    """A Chrome trace, which Perfetto opens, and a table; both or neither.

    Args:
        steps: how many were profiled.
        seconds: wall time of all of them.
    """
    with atomic_path(folder, replace_folder=True) as temporary:
        temporary.mkdir()
        times = part_times(profiler.events() or [], 1e6 * seconds)
        text = "\n".join([f"{title}\n", *part_table(times, steps), "", _operator_table(profiler, times)])
        (temporary / _TABLE).write_text(text, encoding="utf-8")
        plain = temporary / "trace.json"
        # Not to `.gz` at once, for which torch writes the whole trace to /tmp first.
        profiler.export_chrome_trace(str(plain))
        if not plain.is_file():
            raise OSError(f"{folder}: torch could not write the trace, a full disk perhaps; its own line says why")
        with open(plain, "rb") as trace, gzip.open(temporary / _TRACE, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(trace, packed)
        plain.unlink()


@dataclass
class Times:
    """Microseconds of a part: by the clock, and of work of the device that it has started."""

    host: float = 0.0
    device: float = 0.0


@dataclass(frozen=True)
class _Range:
    """A range of a part, in microseconds; `outer` is the index of the range round it, -1 for none."""

    part: str
    start: float
    end: float
    outer: int


def part_times(events: Sequence[Any], microseconds: float) -> dict[str, Times]:
    """The time of each part, without parts within it, as they come in a step; what is left is `REST`.

    A kernel counts to the part in which the host started it, in whatever thread.

    Args:
        events: torch's `FunctionEvent`.
        microseconds: wall time of the profile.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    ranges = _ranges(events)
    starts = [each.start for each in ranges]
    times = {name: Times() for name in (*PARTS, REST)}
    times[REST].host = microseconds
    for each in ranges:
        outer = ranges[each.outer].part if each.outer >= 0 else REST
        times[each.part].host += each.end - each.start
        times[outer].host -= each.end - each.start
    for event in events:
        # The device's own record of a range has the range's name, and is no work besides its kernels.
        work = sum(kernel.duration for kernel in event.kernels if kernel.name != event.name)
        if work:
            times[_part_at(event.time_range.start, ranges, starts)].device += work
    return {name: found for name, found in times.items() if found != Times()}


def _ranges(events: Sequence[Any]) -> list[_Range]:
    """In the order of their starts, outer ones first."""
    found = [(event.time_range, name) for event in events if (name := part_named(event.name)) is not None]
    ranges: list[_Range] = []
    open_ranges: list[int] = []
    for span, name in sorted(found, key=lambda one: (one[0].start, -one[0].end)):
        while open_ranges and ranges[open_ranges[-1]].end <= span.start:
            open_ranges.pop()
        ranges.append(_Range(name, span.start, span.end, open_ranges[-1] if open_ranges else -1))
        open_ranges.append(len(ranges) - 1)
    return ranges


def _part_at(moment: float, ranges: Sequence[_Range], starts: Sequence[float]) -> str:
    index = bisect.bisect_right(starts, moment) - 1
    while index >= 0 and ranges[index].end < moment:
        index = ranges[index].outer
    return ranges[index].part if index >= 0 else REST


def part_table(times: dict[str, Times], steps: int) -> list[str]:
    """Lines of text, in milliseconds a step; device time where there was any."""
    total = Times(sum(each.host for each in times.values()), sum(each.device for each in times.values()))
    device = f"{'device ms a step':>18}" if total.device else ""
    lines = [f"{'part':<16}{'ms a step':>12}{'share':>9}{device}"]
    for name, each in {**times, "sum": total}.items():
        device = f"{each.device / steps / 1e3:18.3f}" if total.device else ""
        lines.append(f"{name:<16}{each.host / steps / 1e3:12.3f}{each.host / total.host:9.1%}{device}")
    return lines


def _operator_table(profiler: torch.profiler.profile, times: dict[str, Times]) -> str:
    where = "device" if any(each.device for each in times.values()) else "cpu"
    averages = profiler.key_averages()
    return averages.table(sort_by=f"self_{where}_time_total", row_limit=_OPERATORS, max_name_column_width=60)
