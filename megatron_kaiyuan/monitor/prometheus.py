"""`monitor.prometheus_file`: the newest row as a file for the textfile collector of Prometheus' node exporter.

The text format is version 0.0.4 of Prometheus' exposition formats. The collector reads `*.prom` in its folder at each
scrape, so the file is written beside itself and renamed; a time stamp would be refused, so times are metrics.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple, get_args

from megatron_kaiyuan.config import WeightKind
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import remove_leftovers, temporary_beside
from megatron_kaiyuan.metrics import is_recorded
from megatron_kaiyuan.monitor.sinks import Row, Sink


class _Metric(NamedTuple):
    kind: str
    help: str
    column: str
    labels: tuple[tuple[str, str], ...] = ()


_METRICS = {
    "kaiyuan_step": [_Metric("gauge", "Steps of the run so far.", "step")],
    "kaiyuan_planned_steps": [_Metric("gauge", "Steps at the end of the run.", "total_steps")],
    "kaiyuan_tokens": [_Metric("gauge", "Tokens of the run so far.", "tokens")],
    "kaiyuan_loss": [_Metric("gauge", "Loss in nats a token, mean since the last row.", "loss_mean")],
    "kaiyuan_learning_rate": [
        _Metric("gauge", "Learning rate; of a kind of weights where that has one of its own.", "lr"),
        *(_Metric("gauge", "", f"lr_{kind}", (("weights", kind),)) for kind in get_args(WeightKind)),
    ],
    "kaiyuan_gradient_norm": [_Metric("gauge", "Norm of the gradient before clipping.", "grad_norm")],
    "kaiyuan_loss_scale": [_Metric("gauge", "Scale of the loss, 1 without scaling.", "loss_scale")],
    "kaiyuan_tokens_per_second": [_Metric("gauge", "Tokens a second of the whole job.", "tokens_per_second")],
    "kaiyuan_mfu": [_Metric("gauge", "Model FLOPs utilization.", "mfu")],
    "kaiyuan_seconds_per_step": [_Metric("gauge", "Seconds of a step.", "seconds_per_step")],
    "kaiyuan_rank_seconds": [
        _Metric("gauge", "Seconds to a rank's own gradients.", f"rank_seconds_{name}", (("of_ranks", name),))
        for name in ("min", "median", "max")
    ],
    "kaiyuan_slowest_rank": [_Metric("gauge", "The rank of the longest time.", "slowest_rank")],
    "kaiyuan_skipped_steps": [_Metric("gauge", "Steps of the run without an update.", "skipped_steps")],
    "kaiyuan_overflow_steps": [_Metric("gauge", "Steps of the run that overflowed.", "overflow_steps")],
    "kaiyuan_peak_memory_bytes": [_Metric("gauge", "Largest memory of rank 0's device.", "peak_memory_bytes")],
    "kaiyuan_row_timestamp_seconds": [_Metric("gauge", "When the last row was written.", "time")],
    "kaiyuan_checkpoint_step": [_Metric("gauge", "Step of the newest checkpoint.", "checkpoint_step")],
    "kaiyuan_checkpoint_timestamp_seconds": [_Metric("gauge", "When it was whole.", "checkpoint_time")],
    "kaiyuan_running": [_Metric("gauge", "1 from the start to the end of a job.", "running")],
}


class Prometheus(Sink):
    """Rewrites one file; a file that cannot be written ends it, as of every sink, with a warning.

    Args:
        path: NAME.prom.

    Raises:
        UserError: the collector would not read a file of that name, or there is no such folder.
    """

    def __init__(self, path: Path, run_dir: Path):
        if not path.parent.is_dir():
            raise UserError(f"monitor.prometheus_file {path}: {path.parent} is not a folder; make it first")
        self._path, self._run = path, run_dir.name
        self._values: Row = {"running": 1}
        self._events: Counter[str] = Counter()
        remove_leftovers(path)

    def write(self, row: Row) -> None:
        # What rooms record is not in every row.
        self._values = {name: value for name, value in self._values.items() if not is_recorded(name)} | row
        self._rewrite()

    def event(self, row: Row) -> None:
        self._events[row["event"]] += 1
        if row["event"] in ("start", "resume"):
            self._values.update({name: row[name] for name in ("step", "tokens", "total_steps")})
        elif row["event"] == "checkpoint":
            self._values.update(checkpoint_step=row["step"], checkpoint_time=row["time"])
        self._rewrite()

    def close(self) -> None:
        self._values["running"] = 0
        self._rewrite()

    def _rewrite(self) -> None:
        # Without fsync: after a power failure the job is gone too, and its next start writes the file again.
        temporary = temporary_beside(self._path)
        try:
            temporary.write_text(as_text(self._run, self._values, self._events), encoding="utf-8")
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)


def as_text(run: str, values: Row, events: Counter[str]) -> str:
    """Return the exposition of a row and of how many events there were, each metric labelled with the run's name."""
    lines = []
    for name, metrics in _METRICS.items():
        samples = [
            f"{name}{_labels(run, *metric.labels)} {float(value)!r}"
            for metric in metrics
            if isinstance(value := values.get(metric.column), int | float)
        ]
        lines += _family(name, metrics[0].kind, metrics[0].help, samples)
    recorded = {name: value for name, value in sorted(values.items()) if is_recorded(name) and value is not None}
    samples = [f"kaiyuan_recorded{_labels(run, ('metric', name))} {float(value)!r}" for name, value in recorded.items()]
    lines += _family("kaiyuan_recorded", "gauge", "What rooms record, over all ranks.", samples)
    counts = [f"kaiyuan_events_total{_labels(run, ('event', name))} {count}" for name, count in sorted(events.items())]
    lines += _family("kaiyuan_events_total", "counter", "Events of this job in metrics.jsonl.", counts)
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, kind: str, about: str, samples: list[str]) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *samples] if samples else []


def _labels(run: str, *more: tuple[str, str]) -> str:
    pairs = (("run", run), *more)
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
