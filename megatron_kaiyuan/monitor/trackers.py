"""Sinks that other libraries draw: TensorBoard, Weights & Biases, SwanLab.

A run is one run to them through all its starts, drawn against its tokens. TensorBoard forgets the rows that a restart
or a rollback made void. The other two keep them: each row says in `attempt` how many starts and rollbacks came before
it, so that of two rows with the same tokens the one with the higher attempt counts. A new tracker is a class here, a
line in `tracker_sinks` and a field of `monitor`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megatron_kaiyuan.config import MonitorConfig
from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.files import read_json, write_json
from megatron_kaiyuan.forms import Count, Form, PathText, require_form
from megatron_kaiyuan.monitor.sinks import Row, Sink

log = logging.getLogger(__name__)

# Events after which rows start again past the event's step.
_RESTARTS = ("start", "resume", "rollback")
_IDENTITY, _NAME = "tracker_run.json", "name of the run at its trackers"


class _Identity(Form):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    path: PathText
    inode: Count


def tracker_sinks(run_dir: Path, monitor: MonitorConfig, config: dict[str, Any]) -> list[Callable[[], Sink]]:
    """Makers of the trackers that a recipe asks for."""
    makers: list[Callable[[], Sink]] = []
    if monitor.tensorboard:
        makers.append(lambda: TensorBoard(run_dir / "tensorboard"))
    if monitor.wandb:
        makers.append(lambda: Wandb(run_dir, monitor.wandb_project, config))
    if monitor.swanlab:
        makers.append(lambda: SwanLab(run_dir, monitor.swanlab_project, config))
    return makers


class Tracker(Sink):
    """A tracker that keeps rows for good, and texts of samples beside them.

    Args:
        run_dir: its `events.jsonl` says how many starts and rollbacks there were.
    """

    def __init__(self, run_dir: Path):
        self._attempt = _restarts_so_far(run_dir / "events.jsonl")

    def event(self, row: Row) -> None:
        self._attempt += row["event"] in _RESTARTS

    def _figures(self, row: Row) -> dict[str, float]:
        """Return what is drawn of a row, and what it is drawn against."""
        return {"step": row["step"], **numbers(row), "attempt": self._attempt}


class TensorBoard(Sink):
    """Scalars and samples under `run_dir/tensorboard`; a restart or a rollback purges what lies past it."""

    def __init__(self, folder: Path):
        module = require("torch.utils.tensorboard", extra="tracking", purpose="monitor.tensorboard")
        self._open = lambda purge_step: module.SummaryWriter(str(folder), purge_step=purge_step)
        self._writer: Any = None

    def write(self, row: Row) -> None:
        if self._writer is None:
            self._writer = self._open(None)
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["tokens"])
        # Else a kill loses what two minutes have brought.
        self._writer.flush()

    def table(self, row: Row) -> None:
        for number, sample in enumerate(_samples(row), start=1):
            if self._writer is None:
                self._writer = self._open(None)
            # Markdown: an indented block is shown as it is.
            text = "\n".join(f"    {line}" for line in f"{sample['prompt']}⟶{sample['text']}".splitlines())
            self._writer.add_text(f"samples/{number}", text, row["tokens"])
            self._writer.flush()

    def event(self, row: Row) -> None:
        if row["event"] in _RESTARTS:
            self.close()
            self._writer = self._open(row["tokens"] + 1)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb(Tracker):
    """Weights & Biases: online with an account, else offline under `run_dir/wandb`."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]):
        super().__init__(run_dir)
        self._wandb = wandb = require("wandb", extra="tracking", purpose="monitor.wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
        options = {"project": project, "dir": str(run_dir), "config": config, "name": run_dir.name}
        options.update(id=tracker_id(run_dir), resume="allow")
        try:
            self._run = wandb.init(mode=mode, **options)
        except wandb.errors.Error as error:
            log.warning(f"wandb {mode} did not start ({error}); it records offline")
            self._run = wandb.init(mode="offline", **options)
        # Its own step must rise and drops what does not, which is all that follows a rollback.
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def write(self, row: Row) -> None:
        self._run.log(self._figures(row))

    def table(self, row: Row) -> None:
        if samples := _samples(row):
            rows = [[row["step"], sample["prompt"], sample["text"]] for sample in samples]
            table = self._wandb.Table(columns=["step", "prompt", "text"], data=rows)
            self._run.log({**self._figures(row), "samples": table})

    def close(self) -> None:
        self._run.finish()


class SwanLab(Tracker):
    """SwanLab: online with an account, else offline under `run_dir/swanlog`."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]):
        super().__init__(run_dir)
        self._swanlab = swanlab = require("swanlab", extra="tracking", purpose="monitor.swanlab")
        mode = os.environ.get("SWANLAB_MODE") or ("online" if swanlab.Settings().api_key else "offline")
        options = {"project": project, "log_dir": str(run_dir / "swanlog"), "config": config, "name": run_dir.name}
        options.update(id=tracker_id(run_dir), resume="allow")
        try:
            self._run = swanlab.init(mode=mode, **options)
        except Exception as error:
            log.warning(f"swanlab {mode} did not start ({error}); it records offline")
            self._run = swanlab.init(mode="offline", reinit=True, **options)
        self._run.define_metric("*", x_axis="tokens")

    def write(self, row: Row) -> None:
        self._run.log(self._figures(row))

    def table(self, row: Row) -> None:
        for number, sample in enumerate(_samples(row), start=1):
            text = self._swanlab.Text(f"{sample['prompt']}⟶{sample['text']}", caption=f"step {row['step']}")
            self._run.log({**self._figures(row), f"samples/{number}": text})

    def close(self) -> None:
        self._run.finish()


def tracker_id(run_dir: Path) -> str:
    """The name under which trackers know this run, kept in its folder.

    A folder that was moved keeps it; a copy gets one of its own, so that it does not write into the original's record.
    """
    path, here = run_dir / _IDENTITY, {"path": str(run_dir.resolve()), "inode": run_dir.stat().st_ino}
    if path.exists():
        try:
            kept = require_form(path, read_json(path, _NAME), _Identity, "leave it to the run")
            if here["path"] == kept.path or here["inode"] == kept.inode:
                return kept.id
            log.warning(f"{run_dir}: a copy of {excerpt(kept.path)}; trackers get it as a run of its own")
        except UserError as error:
            log.warning(f"{path}: damaged ({error}); trackers start another run")
    identity = uuid.uuid4().hex[:16]
    write_json(path, {"id": identity, **here})
    return identity


def numbers(row: Row) -> dict[str, float]:
    """What of a row is drawn."""
    return {key: value for key, value in row.items() if isinstance(value, int | float) and key not in ("step", "time")}


def _has_account(wandb: Any) -> bool:
    """Return whether wandb finds a key, without a question on the terminal and without the network."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)


def _samples(row: Row) -> list[dict[str, str]]:
    return row["samples"] if row["event"] == "samples" else []


def _restarts_so_far(events: Path) -> int:
    """Return how many starts and rollbacks a run has had; lines that a kill has torn count for nothing."""
    begins = tuple(f'{{"event": "{name}"'.encode() for name in _RESTARTS)
    with contextlib.suppress(FileNotFoundError), open(events, "rb") as file:
        return sum(line.startswith(begins) for line in file)
    return 0
