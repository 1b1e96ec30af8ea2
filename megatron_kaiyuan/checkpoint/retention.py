"""Which checkpoints stay."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import is_misnamed, read_manifest
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.files import remove_leftovers

# One to go on from, and one more for the day when it turns out to be damaged.
_FEWEST = 2
_REMOVING = ".removed.tmp"
_UNFINISHED = re.compile(r"step_\d+\.([0-9a-f]{8}|removed)\.tmp")
# Files of a run that are written whole, of which a killed job may have left a temporary one.
_WRITTEN_WHOLE = ("latest", "config.yaml", "preempted.json", "left_out.json", "tracker_run.json")


@dataclass(frozen=True)
class Retention:
    """What to keep besides step 0, the untrained weights.

    Attributes:
        keep_last: the newest scheduled ones, evenly spaced as averaging needs them. Others (on request, at a signal, by
            the clock, at the end) do not push them out: of those the two newest checkpoints of all stay, and as many
            as there are scheduled ones too few.
        keep_every_steps: multiples of it stay for ever.
        keep_every_tokens: the first checkpoint at or behind each multiple of it stays for ever.
    """

    keep_last: int
    keep_every_steps: int | None = None
    keep_every_tokens: int | None = None


def removable(run_dir: Path, retention: Retention) -> list[int]:
    """Steps that may go, ascending. At least two that look whole are left, whatever the rule says."""
    steps = [step for step in layout.steps(run_dir) if step > 0]
    kept = _newest(run_dir, steps, retention.keep_last) | _kept_for_ever(run_dir, steps, retention)
    whole = sum(_looks_whole(layout.step_folder(run_dir, step)) for step in kept)
    removed = []
    for step in reversed(steps):
        if step in kept or is_misnamed(layout.step_folder(run_dir, step)):
            continue
        if whole < _FEWEST and _looks_whole(layout.step_folder(run_dir, step)):
            whole += 1
        else:
            removed.append(step)
    return removed[::-1]


def prune(run_dir: Path, retention: Retention, report: Callable[[int, str], None]) -> list[int]:
    """Remove what may go.

    A step loses its name before its first file, so that one which is removed only in part is never taken for a
    checkpoint. What cannot be removed (a link, a mount point, files that are locked or still open) stays for the next
    time: it is no reason to end a run.

    Args:
        report: gets each step that could not be removed whole, and why.

    Returns:
        The steps that were removed.
    """
    for left in layout.checkpoints_folder(run_dir).glob(f"step_*{_REMOVING}"):
        shutil.rmtree(left, ignore_errors=True)
    removed = []
    for step in removable(run_dir, retention):
        try:
            _remove(layout.step_folder(run_dir, step))
            removed.append(step)
        except OSError as error:
            report(step, describe(error))
    return removed


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(f"{folder} is a link, which the run did not make")
    doomed = folder.with_name(folder.name + _REMOVING)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def remove_unfinished(run_dir: Path) -> None:
    """Remove what a job that died left half written or half removed. The caller holds the run's lock."""
    folder = layout.checkpoints_folder(run_dir)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for name in _WRITTEN_WHOLE:
        remove_leftovers(run_dir / name)


def is_scheduled(folder: Path) -> bool:
    """Whether a checkpoint was saved at a multiple of `checkpoint.save_every_steps`, as far as its manifest says."""
    try:
        return bool(read_manifest(folder).get("scheduled", True))
    except (UserError, OSError):
        return True


def _newest(run_dir: Path, steps: list[int], keep_last: int) -> set[int]:
    scheduled = [step for step in steps if is_scheduled(layout.step_folder(run_dir, step))]
    kept = set(scheduled[-keep_last:]) | set(steps[-_FEWEST:])
    others = [step for step in reversed(steps) if step not in kept]
    return kept | set(others[: max(keep_last - len(kept), 0)])


def _kept_for_ever(run_dir: Path, steps: list[int], retention: Retention) -> set[int]:
    kept = set()
    if every := retention.keep_every_steps:
        kept |= {step for step in steps if step % every == 0}
    if every := retention.keep_every_tokens:
        multiples = 0
        for step in steps:
            tokens = _tokens(layout.step_folder(run_dir, step))
            if tokens is not None and tokens // every > multiples:
                multiples = tokens // every
                kept.add(step)
    return kept


def _tokens(folder: Path) -> int | None:
    try:
        tokens = read_manifest(folder).get("tokens")
    except UserError:
        return None
    return tokens if isinstance(tokens, int) else None


def _looks_whole(folder: Path) -> bool:
    """Every file is there in its size; hashing all checkpoints at each save would cost more than the save."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (UserError, OSError):
        return False
