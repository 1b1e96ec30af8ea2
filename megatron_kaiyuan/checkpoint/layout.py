"""Where checkpoints lie.

    run_dir/checkpoints/step_N/   megatron-core's torch_dist files and manifest.json (size and checksum of each)
    run_dir/checkpoints/step_N.damaged/  a step that was not whole when it was to be loaded, kept for a look
    run_dir/latest                the name of the newest step
    run_dir/preempted.json        the run was asked to stop, and saved; gone when it continues
    run_dir/mistake.json          the mistake that ended a start, where the folder was there by then

A folder without `manifest.json` is no checkpoint; `verify.py` says whether one that has it is whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from megatron_kaiyuan.files import checksum, fsync_path, write_sealed_json, write_text

FORMAT = "kaiyuan-checkpoint"
# Those that are read; the last one is written. 1: before closing norms had names of their own (`earlier_names.py`).
VERSIONS = (1, 2)
MANIFEST = "manifest.json"
PREEMPTED = "preempted.json"
MISTAKE = "mistake.json"
_STEP = re.compile(r"step_(0|[1-9]\d*)")


def checkpoints_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def step_folder(run_dir: Path, step: int) -> Path:
    return checkpoints_folder(run_dir) / f"step_{step}"


def steps(run_dir: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending; none for a new run."""
    folder = checkpoints_folder(run_dir)
    # os.path: a folder that may not be entered, or that another machine has removed, is no reason to raise.
    return [step for step in all_steps(run_dir) if os.path.isfile(folder / f"step_{step}" / MANIFEST)]


def write_manifest(folder: Path, known: dict[str, dict[str, Any]] | None = None, **about: Any) -> None:
    """Record size and checksum of every file of a checkpoint; the last file written into it.

    Args:
        known: sizes and checksums of files that were hashed when they were written; the others are read.
        about: what the checkpoint is (step, tokens, ...).
    """
    known = known or {}
    # The listing distinguishes files from folders: to ask for each takes a look for every rank that wrote one.
    found = (Path(where) / name for where, _, names in os.walk(folder) for name in names)
    files = sorted(path for path in found if path.name != MANIFEST)
    names = [str(path.relative_to(folder)) for path in files]
    entries = {
        name: known.get(name) or {"bytes": path.stat().st_size, "checksum": checksum(path)}
        for name, path in zip(names, files, strict=True)
    }
    write_sealed_json(folder / MANIFEST, {"format": FORMAT, "version": max(VERSIONS), **about, "files": entries})


def all_steps(run_dir: Path) -> list[int]:
    """Steps with a folder of their name, whole or not, ascending: it got that name after its last file was written."""
    folder = checkpoints_folder(run_dir)
    if not folder.is_dir():
        return []
    found = (step_of(path.name) for path in folder.iterdir() if os.path.isdir(path))
    return sorted(step for step in found if step is not None)


def step_of(name: str) -> int | None:
    """The step that a folder's name, or the content of `latest`, means."""
    match = _STEP.fullmatch(name)
    return int(match.group(1)) if match else None


def read_latest(run_dir: Path) -> str | None:
    """What `latest` says; None without one."""
    try:
        return (run_dir / "latest").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def set_aside(folder: Path, why: str) -> Path:
    """Rename a folder that must not be used, to `<name>.<why>`; nothing of it is lost or written over.

    Args:
        why: `damaged`, `replaced`, ...

    Returns:
        Where it lies now.
    """
    number, aside = 1, folder.with_name(f"{folder.name}.{why}")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.{why}.{number}")
    os.rename(folder, aside)
    fsync_path(folder.parent)
    return aside


def point_latest(run_dir: Path, step: int) -> None:
    """Move `latest` to a finished step."""
    write_text(run_dir / "latest", f"step_{step}\n")
