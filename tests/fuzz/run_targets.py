"""What a run leaves in its folder beside checkpoints and rows: its lock, its name at trackers, its configuration."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from megatron_kaiyuan.errors import UserError
from tests.fuzz import json_damage, recipe_targets
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate


def _written(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "run" / "checkpoints" / "step_8").mkdir(parents=True)
        (folder / "run" / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder / "run" / name

    return make


_CONFIG = "# As resolved by kaiyuan train\n" + yaml.safe_dump({"run_dir": "a", "checkpoint": {"save_every_steps": 4}})
# Of another machine: it is watched.
_NOTE = {
    **{"host": "node7", "boot": "b", "pid": 7, "started": 1.7e9, "beats": 3, "folder": "/runs/a", "doing": "step"},
    **{"step": 3, "quiet_seconds": 1.5, "limit_seconds": 300.0, "time": 1.7e9},
}


def _lock(path: Path) -> Any:
    """A job that finds the note of another one, and `kaiyuan status`."""
    from megatron_kaiyuan.checkpoint.lock import RunLock, _read_note, holder
    from megatron_kaiyuan.report.status import read_status
    from megatron_kaiyuan.train.run_folder import require_run_folder

    content = path.read_bytes()
    with open(path, "rb") as file:
        note = _read_note(file.fileno())
    holder(path.parent, watch_seconds=0)
    # As if that job lived.
    with mock.patch("megatron_kaiyuan.checkpoint.lock.holder", return_value=note), contextlib.suppress(UserError):
        read_status(path.parent).lines()
    require_run_folder(path.parent)
    lock = RunLock(path.parent, watch_seconds=0)
    lock._refusal(note)
    lock.release()
    path.write_bytes(content)


def _tracked(folder: Path) -> Path:
    from megatron_kaiyuan.monitor.trackers import tracker_id

    (folder / "run").mkdir()
    tracker_id(folder / "run")
    return folder / "run" / "tracker_run.json"


def _tracker(path: Path) -> Any:
    from megatron_kaiyuan.monitor.trackers import tracker_id

    content = path.read_bytes()
    name = tracker_id(path.parent)
    path.write_bytes(content)
    return None if re.fullmatch("[0-9a-f]{16}", name) else f"the name {name!r}"


def _config(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.retention import was_scheduled

    was_scheduled(path.parent / "checkpoints" / "step_8", {})


TARGETS = (
    Target("run-lock", _written("lock", _NOTE), json_damage.plain, [_lock]),
    Target("run-lock-bytes", _written("lock", _NOTE), mutate, [_lock]),
    Target("run-tracker", _tracked, json_damage.plain, [_tracker], lenient=True),
    Target("run-config", _written("config.yaml", _CONFIG), recipe_targets.damage, [_config], lenient=True),
)
