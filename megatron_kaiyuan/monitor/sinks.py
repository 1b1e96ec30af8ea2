"""Where metrics go. `metrics.jsonl` always; the rest is optional, and none of them can stop training."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import break_hard_links
from megatron_kaiyuan.redaction import redact_values

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Sink(ABC):
    """One place for metrics. Errors may be raised: the caller drops the sink and continues."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """Record one step's metrics."""

    def show(self, names: Sequence[str]) -> None:
        """Show these columns too, where a person reads, in rows that have them."""
        return

    def event(self, row: Row) -> None:
        """Record a start, resume, checkpoint or stop; under `table` an event may hold rows of texts."""
        return

    def table(self, row: Row) -> None:
        """Record an event that holds more figures than a person reads in a line."""
        return

    def flush(self) -> None:
        """Bring what was recorded to the disk: a checkpoint after it may outlive this machine."""
        return

    def close(self) -> None:
        """Flush and release."""
        return


class JsonLines(Sink):
    """`metrics.jsonl`: one JSON object a line, steps and events, written at once; resumed runs append.

    Rows that find no room on the disk wait in memory until there is some.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        break_hard_links(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._waiting = bytearray()
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # The run died while it wrote: keep the next row off the torn line.
            self._waiting += b"\n"

    def write(self, row: Row) -> None:
        had_room = not self._waiting
        self._waiting += json.dumps(row).encode() + b"\n"
        error = self._write_waiting()
        if error is not None and had_room:
            log.warning(f"{self._path}: {error.strerror}; rows wait in memory until they can be written")

    def flush(self) -> None:
        # A disk that fails now fails the checkpoint too, which reports it.
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)

    def event(self, row: Row) -> None:
        self.write(row)

    def table(self, row: Row) -> None:
        self.write(row)

    def close(self) -> None:
        error = self._write_waiting()
        os.close(self._descriptor)
        if error is not None:
            log.warning(f"{self._path}: {error.strerror}; {self._waiting.count(10)} rows were not written and are lost")

    def _write_waiting(self) -> OSError | None:
        """Why not everything could be written, if so."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]
        except OSError as error:
            return error
        return None


class Events(JsonLines):
    """`events.jsonl`: the events of `metrics.jsonl` once more, but for the monitor's figures.

    Which rows a restart makes void is decided by the order of lines in `metrics.jsonl`, which keeps all of them.
    """

    def write(self, row: Row) -> None:
        return

    def event(self, row: Row) -> None:
        super().write(row)

    def table(self, row: Row) -> None:
        if row["event"] != "monitor":
            super().write(row)


class Sinks:
    """All sinks of a run, on rank 0; on other ranks there are none. A sink that fails is dropped with a warning."""

    def __init__(self, makers: Sequence[Callable[[], Sink]]):
        self._sinks: list[Sink] = []
        for make in makers:
            try:
                self._sinks.append(make())
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                log.warning(f"a metrics sink did not start and is left out: {error}")

    def write(self, row: Row) -> None:
        self._each(lambda sink: sink.write(row))

    def show(self, names: Sequence[str]) -> None:
        self._each(lambda sink: sink.show(names))

    def event(self, name: str, **details: Any) -> None:
        row = redact_values({"event": name, **details, "time": time.time()})
        self._each(lambda sink: sink.event(row))

    def table(self, name: str, **details: Any) -> None:
        row = redact_values({"event": name, **details, "time": time.time()})
        self._each(lambda sink: sink.table(row))

    def flush(self) -> None:
        self._each(lambda sink: sink.flush())

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _each(self, action: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            except (Exception, SystemExit) as error:
                log.warning(f"{type(sink).__name__} failed and is left out from here on: {error}")
                self._sinks.remove(sink)


def open_sinks(
    run_dir: Path, monitor: MonitorConfig, total_steps: int, config: dict[str, Any], alone: bool = True
) -> Sinks:
    """The sinks that a recipe asks for.

    Args:
        alone: this process is the only rank.

    Raises:
        UserError: an optional package that the recipe asks for is not installed.
    """
    from megatron_kaiyuan.monitor.notify import Notify
    from megatron_kaiyuan.monitor.prometheus import Prometheus
    from megatron_kaiyuan.monitor.terminal import open_terminal
    from megatron_kaiyuan.monitor.trackers import tracker_sinks

    command, file = monitor.notify_command, monitor.prometheus_file
    return Sinks(
        [
            lambda: JsonLines(run_dir / "metrics.jsonl"),
            lambda: Events(run_dir / "events.jsonl"),
            lambda: open_terminal(total_steps, alone),
            *([lambda: Prometheus(file, run_dir)] if file is not None else []),
            *([lambda: Notify(run_dir, monitor)] if command is not None else []),
            *tracker_sinks(run_dir, monitor, redact_values(config)),
        ]
    )
