"""Where checkpoints lie, what makes one valid, and which one to resume from.

    run_dir/checkpoints/step_N/   megatron-core's torch_dist files and manifest.json (size and checksum of each)
    run_dir/latest                the name of the newest step

torch_dist holds no checksums of its own: a flipped bit loads silently. So nothing is loaded before its
manifest has been checked.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum, fsync_path, read_json, write_json, write_text

MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d+)")


def checkpoints_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def step_folder(run_dir: Path, step: int) -> Path:
    return checkpoints_folder(run_dir) / f"step_{step}"


def steps(run_dir: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending; none for a new run."""
    folder = checkpoints_folder(run_dir)
    if not folder.is_dir():
        return []
    names = (_STEP.fullmatch(path.name) for path in folder.iterdir() if (path / MANIFEST).is_file())
    return sorted(int(name.group(1)) for name in names if name)


def write_manifest(folder: Path) -> None:
    """Record size and checksum of every file of a checkpoint; the last file written into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in files
    }
    write_json(folder / MANIFEST, {"format": "kaiyuan-checkpoint", "version": 1, "files": entries})


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    manifest = read_json(folder / MANIFEST, "checkpoint manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != "kaiyuan-checkpoint":
        raise UserError(f"{folder / MANIFEST}: is not a checkpoint's manifest")
    for name, expected in manifest["files"].items():
        path = inside(folder, name)
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(f"{path}: damaged, {size} bytes instead of {expected['bytes']}")
        found = checksum(path)
        if found != expected["checksum"]:
            raise UserError(f"{path}: damaged, checksum {found} instead of {expected['checksum']}")


def inside(folder: Path, name: str) -> Path:
    """A file that a manifest names.

    Raises:
        UserError: the name leads out of the folder, by `..`, by an absolute path or by a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.resolve() == folder.resolve():
        raise UserError(f"{folder / MANIFEST}: names {name!r}, which is not inside the checkpoint; do not use it")
    return path


def newest_valid(run_dir: Path) -> tuple[int | None, list[str]]:
    """The newest step whose files are whole, and what was wrong with the newer ones.

    Raises:
        UserError: there are checkpoints, but none is whole: starting anew would throw the run away.
    """
    problems: list[str] = []
    for step in reversed(steps(run_dir)):
        try:
            verify(step_folder(run_dir, step))
            return step, problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{checkpoints_folder(run_dir)}: no checkpoint is whole ({problems[0]}); restore one from a copy, "
            "or choose another run_dir to start anew"
        )
    return None, problems


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


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` steps; step 0, the untrained weights, stays."""
    for step in [step for step in steps(run_dir) if step > 0][:-keep_last]:
        shutil.rmtree(step_folder(run_dir, step))
