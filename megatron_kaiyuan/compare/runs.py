"""The runs that are compared: of each what a comparison needs, and no more, so that twenty long ones fit in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from megatron_kaiyuan.compare.bootstrap import Floats
from megatron_kaiyuan.compare.evaluation import Evaluation, read_evaluation
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.compare import completed, flatten
from megatron_kaiyuan.config.load import read_yaml
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.planning.speed import flops_per_token
from megatron_kaiyuan.report.metrics import History, read_history
from megatron_kaiyuan.report.table import number

FEWEST_RUNS, MOST_RUNS = 2, 20
MANIFEST = "manifest.json"
# Figures of rows that are compared, and the rooms whose recorded figures are.
_MEASURED_ROOMS = ("validation/", "tasks/")
_COLUMNS = ("lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes")
# Events whose facts describe the machine and the software of a start.
_FACTS = ("start", "resume", "utilization", "environment")
_LEFT_OUT = ("left_out", "rollback")
_NO_FACTS = ("event", "time", "step", "tokens", "total_steps", "parameters", "convention")
# Events that are counted, in the words of the comparison.
_COUNTED = {
    "restarts": "resume",
    "rollbacks": "rollback",
    "bad steps": "bad_step",
    "overflows": "overflow",
    "headroom warnings": "headroom_warning",
}


@dataclass(frozen=True)
class Series:
    """The rows that have a figure: at which tokens, and the figure, finite."""

    tokens: NDArray[np.int64]
    values: Floats

    def until(self, end: int) -> Series:
        """The rows up to a token."""
        count = int(np.searchsorted(self.tokens, end, side="right"))
        return Series(self.tokens[:count], self.values[:count])

    def since(self, begin: int) -> Series:
        """The rows beyond a token."""
        first = int(np.searchsorted(self.tokens, begin, side="right"))
        return Series(self.tokens[first:], self.values[first:])


@dataclass(frozen=True)
class Run:
    """One run as its folder shows it now.

    Attributes:
        name: of its folder, with as much of the path before it as sets it apart from the others.
        tokens: of each row that counts, rising.
        losses: mean since the row before, nats a token; NaN where none was finite.
        loss_steps: steps that it is a mean of.
        seconds: wall clock at each row without pauses (`History.trained_seconds`); NaN: not known.
        flops: of the model for the tokens so far, forward and backward, attention over all pairs; None: not known.
        series: figures of rows by name.
        counts: of events in words.
        config: the resolved configuration, every field; None: not readable.
        order: what decides which tokens stand at a position; None: not known.
        facts: what the events of its starts say of machine and software, the newest of each.
        evaluation: the newest entry of evaluation.json; None: none.
        notes: what is missing or odd, a line each.
    """

    name: str
    folder: Path
    steps: int
    tokens: NDArray[np.int64]
    losses: Floats
    loss_steps: Floats
    seconds: Floats
    flops: Floats | None
    series: dict[str, Series]
    counts: dict[str, int]
    config: dict[str, Any] | None
    order: tuple[str, ...] | None
    facts: dict[str, Any]
    evaluation: Evaluation | None
    notes: list[str] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Tokens that it has trained on."""
        return int(self.tokens[-1])

    @property
    def before(self) -> NDArray[np.int64]:
        """Tokens of the row before each row, 0 for the first."""
        return np.concatenate([[0], self.tokens[:-1]])


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read the runs, each once, and what is to be noted about the list.

    Raises:
        UserError: they are fewer than 2 or more than 20, or one is no run or has no step.
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    again = len(folders) - len(once)
    notes = [f"{again} of the folders are runs that were named before: left out"] if again else []
    if not FEWEST_RUNS <= len(once) <= MOST_RUNS:
        raise UserError(
            f"compare: takes {FEWEST_RUNS} to {MOST_RUNS} different runs and got {len(once)}; name their folders"
        )
    return [_read(folder, name) for folder, name in zip(once.values(), _names(list(once)), strict=True)], notes


def _names(folders: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to distinguish them."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name the folder of a run{near_run(folder)}")
    history = read_history(folder / "metrics.jsonl", with_monitor=False)
    notes = _notes(history)
    config = _read_config(folder, notes)
    tokens = history.rows.tokens
    losses, loss_steps = history.losses()
    names = [*_COLUMNS, *(recorded for recorded in history.recorded() if recorded.startswith(_MEASURED_ROOMS))]
    return Run(
        name=name,
        folder=folder,
        steps=int(history.rows.steps[-1]),
        tokens=tokens,
        losses=losses,
        loss_steps=loss_steps,
        seconds=history.trained_seconds(),
        flops=_flops(history, config),
        series={name: found for name in names if len((found := _series(history, name, tokens)).values)},
        counts=_counts(history),
        config=config,
        order=_order(folder, config, history),
        facts=_facts(history),
        evaluation=read_evaluation(folder, notes),
        notes=notes,
    )


def _notes(history: History) -> list[str]:
    notes = []
    if not np.isfinite(history.losses()[0]).any():
        notes.append("no row has a finite loss")
    if history.unreadable:
        notes.append(f"{history.unreadable:,} unreadable lines of metrics.jsonl are left out")
    for event in history.events:
        if event["event"] == "config_change" and isinstance(event.get("changes"), dict):
            notes.append(f"changed on the way, at step {event.get('step')}: {', '.join(map(str, event['changes']))}")
    return notes


def _read_config(folder: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        return completed(read_yaml(folder / "config.yaml"))
    except UserError as error:
        notes.append(f"configuration: {error}")
        return None


def _series(history: History, name: str, tokens: NDArray[np.int64]) -> Series:
    values = history.column(name)
    there = np.isfinite(values)
    return Series(tokens, values) if there.all() else Series(tokens[there], values[there])


def _counts(history: History) -> dict[str, int]:
    happened = Counter(event["event"] for event in history.events)
    skipped = history.column("skipped_steps")
    last = int(skipped[-1]) if np.isfinite(skipped[-1]) else 0
    return {"skipped steps": last, **{words: happened[name] for words, name in _COUNTED.items()}}


def _facts(history: History) -> dict[str, Any]:
    """What the newest event of each kind says."""
    found: dict[str, Any] = {}
    for event in history.events:
        if event["event"] == "implementations":
            found |= _implementations(event.get("table"))
        elif event["event"] in _FACTS:
            found |= {name: value for name, value in flatten(event).items() if name not in _NO_FACTS}
    return found


def _implementations(table: Any) -> dict[str, Any]:
    """The implementation of each operation."""
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return {f"implementation of {row.get('op')}": row.get("implementation") for row in rows}


def _flops(history: History, config: dict[str, Any] | None) -> Floats | None:
    """Model FLOPs at each row, by what each start said of a token; where none did, by the configuration."""
    said = [event for event in history.events if event["event"] == "utilization"]
    times = [number(event.get("time")) for event in said]
    rates = [number(event.get("flops_per_token")) for event in said]
    if not rates or not np.isfinite([*times, *rates]).all():
        times, rates = [-math.inf], [_flops_per_token(config)]
    if not np.isfinite(rates).all():
        return None
    starts = np.searchsorted(times, history.column("time"), side="right") - 1
    return np.cumsum(np.diff(history.rows.tokens, prepend=0) * np.array(rates)[np.maximum(starts, 0)])


def _flops_per_token(config: dict[str, Any] | None) -> float:
    try:
        return flops_per_token(RunConfig.model_validate(config), causal=False)
    except ValidationError:
        return math.nan


def _order(folder: Path, config: dict[str, Any] | None, history: History) -> tuple[str, ...] | None:
    """What decides which tokens stand at a position: the phases, and what was left out; None: not known."""
    phases = (config or {}).get("data", {}).get("phases") or []
    if not phases:
        return None
    left_out = [
        str(event.get("left_out", event.get("tokens"))) for event in history.events if event["event"] in _LEFT_OUT
    ]
    return (*(_phase_identity(folder, Path(str(phase.get("path")))) for phase in phases), *dict.fromkeys(left_out))


def _phase_identity(folder: Path, phase: Path) -> str:
    """The checksum of its manifest, which holds those of its files; where it is gone, its place."""
    for place in (phase / MANIFEST, folder / phase / MANIFEST):
        if place.is_file():
            return checksum(place)
    return str(phase.absolute())
