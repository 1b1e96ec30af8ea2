"""Is a folder free for a run, or that of an earlier run? Nothing else may be written into."""

from __future__ import annotations

import json
import os
from pathlib import Path

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.lock import LOCK
from megatron_kaiyuan.config import RunConfig, dump_yaml
from megatron_kaiyuan.files import write_text
from megatron_kaiyuan.outputs import Output, check_place
from megatron_kaiyuan.redaction import redact_values

CONFIG = "config.yaml"
# Files that a run writes by these names.
_WRITTEN = (
    CONFIG,
    "metrics.jsonl",
    "events.jsonl",
    "notify.log",
    "latest",
    "preempted.json",
    layout.checkpoints_folder(Path()).name,
)
_HEADER = "# As resolved by kaiyuan train at its last start; edit the recipe, not this file.\n"


def require_run_folder(run_dir: Path) -> None:
    """Refuse a `run_dir` in which a run would write over files that are not an earlier run's.

    Other files may lie there: a run leaves them alone.

    Raises:
        UserError: such a file is in the way, or the folder cannot be written.
    """
    place = Output(run_dir, "a run", "run_dir", "folder")
    check_place(place)
    lock, config = run_dir / LOCK, run_dir / CONFIG
    if os.path.lexists(lock) and not _is_note(lock):
        raise place.in_the_way(lock)
    if config.exists() and config.read_bytes()[: len(_HEADER)] == _HEADER.encode():
        return
    if layout.steps(run_dir):  # a run of an older version
        return
    for name in _WRITTEN:
        # An older version's run that was stopped before its first checkpoint has left its lock, and no step.
        if os.path.lexists(run_dir / name) and not lock.exists():
            raise place.in_the_way(run_dir / name)


def write_config(run: RunConfig) -> None:
    """Record the configuration of a run, every field with its value, credentials taken out."""
    content = dump_yaml(redact_values(run.model_dump(mode="json")))
    write_text(run.run_dir / CONFIG, _HEADER + content)


def _is_note(lock: Path) -> bool:
    """Whether a file is the lock of a run: empty, or one small JSON object."""
    try:
        content = lock.read_bytes()[:4096]
        return not content.strip(b"\0 ") or isinstance(json.loads(content), dict)
    except (OSError, ValueError):
        return False
