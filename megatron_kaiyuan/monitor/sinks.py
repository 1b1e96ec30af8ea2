"""Where metrics go. `metrics.jsonl` always; the rest is optional, and none of them can stop training."""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.redaction import redact, redact_values

Row = dict[str, Any]


class Sink(ABC):
    """One place for metrics. Errors may be raised: the caller drops the sink and goes on."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """Record one step's metrics."""

    def event(self, row: Row) -> None:
        """Record a start, resume, checkpoint or stop; under `table` an event may hold rows of texts."""
        return

    def table(self, row: Row) -> None:
        """Record an event that holds more figures than a person reads in a line."""
        return

    def close(self) -> None:
        """Flush and release."""
        return


class JsonLines(Sink):
    """`metrics.jsonl`: one JSON object a line, steps and events, flushed at once; resumed runs append."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        if torn:
            # The run died while it wrote: keep the next row off the torn line.
            self._file.write("\n")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def event(self, row: Row) -> None:
        self.write(row)

    def table(self, row: Row) -> None:
        self.write(row)

    def close(self) -> None:
        self._file.close()


class Terminal(Sink):
    """One line a row that a person can read."""

    def __init__(self, total_steps: int):
        self._total_steps = total_steps

    def write(self, row: Row) -> None:
        left = (self._total_steps - row["step"]) * row["seconds_per_step"]
        parts = [
            f"step {row['step']:>{len(str(self._total_steps))}}/{self._total_steps}",
            f"{row['tokens'] / 1e6:.2f} M tokens",
            row["phase"],
            f"loss {row['loss']:.4f}" if row["loss"] is not None else "loss not finite",
            f"lr {row['lr']:.2e}",
            f"grad norm {row['grad_norm']:.2f}" if row["grad_norm"] is not None else "step skipped",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{timedelta(seconds=round(left))} left",
        ]
        if row["loss_scale"] != 1:
            parts.insert(-2, f"loss scale {row['loss_scale']:g}")
        if row.get("mfu") is not None:
            parts.insert(-1, f"MFU {row['mfu']:.1%}")
        print(" | ".join(parts), flush=True)

    def event(self, row: Row) -> None:
        told_otherwise = ("event", "time", "documents", "table")
        details = ", ".join(f"{key} {value}" for key, value in row.items() if key not in told_otherwise)
        print("\n".join([f"{row['event']}: {details}".rstrip(), *_aligned(row.get("table", []))]), flush=True)


class TensorBoard(Sink):
    """Scalars under `run_dir/tensorboard`, against tokens."""

    def __init__(self, folder: Path):
        module = require("torch.utils.tensorboard", extra="tracking", purpose="monitor.tensorboard")
        self._writer = module.SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["tokens"])

    def close(self) -> None:
        self._writer.close()


class Wandb(Sink):
    """Weights & Biases: online with an account, else offline under `run_dir/wandb`."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]):
        wandb = require("wandb", extra="tracking", purpose="monitor.wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        options = {"project": project, "dir": str(run_dir), "config": config, "name": run_dir.name}
        try:
            self._run = wandb.init(mode=mode, **options)
        except wandb.errors.Error as error:
            warn(f"wandb {mode} did not start ({error}); it records offline")
            self._run = wandb.init(mode="offline", **options)

    def write(self, row: Row) -> None:
        self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All sinks of a run, on rank 0; on other ranks there are none. A sink that fails is dropped with a warning."""

    def __init__(self, makers: Sequence[Callable[[], Sink]]):
        self._sinks: list[Sink] = []
        for make in makers:
            try:
                self._sinks.append(make())
            except UserError:
                raise
            except Exception as error:
                warn(f"a metrics sink did not start and is left out: {error}")

    def write(self, row: Row) -> None:
        self._each(lambda sink: sink.write(row))

    def event(self, name: str, **details: Any) -> None:
        row = redact_values({"event": name, **details, "time": time.time()})
        self._each(lambda sink: sink.event(row))

    def table(self, name: str, **details: Any) -> None:
        row = redact_values({"event": name, **details, "time": time.time()})
        self._each(lambda sink: sink.table(row))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, action: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            except Exception as error:
                warn(f"{type(sink).__name__} failed and is left out from here on: {error}")
                self._sinks.remove(sink)


def open_sinks(run_dir: Path, monitor: MonitorConfig, total_steps: int, config: dict[str, Any]) -> Sinks:
    """The sinks that a recipe asks for.

    Raises:
        UserError: an optional package that the recipe asks for is not installed.
    """
    makers: list[Callable[[], Sink]] = [
        lambda: JsonLines(run_dir / "metrics.jsonl"),
        lambda: Terminal(total_steps),
    ]
    if monitor.tensorboard:
        makers.append(lambda: TensorBoard(run_dir / "tensorboard"))
    if monitor.wandb:
        makers.append(lambda: Wandb(run_dir, monitor.wandb_project, redact_values(config)))
    return Sinks(makers)


def warn(message: str) -> None:
    """One line of warning on standard error."""
    print(f"warning: {redact(message)}", file=sys.stderr, flush=True)


def _aligned(table: Sequence[Mapping[str, str]]) -> list[str]:
    """A table's rows as lines, each column as wide as its widest text."""
    columns = zip(*(row.values() for row in table), strict=True)
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in map(list, columns)]
    return ["  " + "  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def _numbers(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float) and key not in ("step", "time")}
