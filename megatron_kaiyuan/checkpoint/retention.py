"""Which checkpoints stay."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import read_manifest, usable_steps
from megatron_kaiyuan.config import read_yaml
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.files import remove_leftovers

# One to continue from, and one more for the day when it turns out to be damaged.
_FEWEST = 2
_REMOVING = ".removed.tmp"
_UNFINISHED = re.compile(r"step_\d+\.([0-9a-f]{8}|([0-9a-f]{8}\.)?removed)\.tmp")
# Files of a run that are written whole, of which a killed job may have left a temporary one.
_WRITTEN_WHOLE = (
    "latest",
    "config.yaml",
    "preempted.json",
    "left_out.json",
    "tracker_run.json",
    "bad_nodes.json",
    "mistake.json",
    "restarts.json",
)


@dataclass(frozen=True)
class Retention:
    """What to keep besides step 0, the untrained weights.

    Attributes:
        keep_last: the newest scheduled ones, evenly spaced as averaging needs them. Others (on request, at a signal, by
            the clock, at the end) do not push them out: of those the two newest checkpoints of all stay, and as many
            as there are scheduled ones too few.
        keep_every_steps: multiples of it stay for ever.
        keep_every_tokens: the first checkpoint at or after each multiple of it stays for ever.
    """

    keep_last: int
    keep_every_steps: int | None = None
    keep_every_tokens: int | None = None


def removable(run_dir: Path, retention: Retention) -> list[int]:
    """Steps that may go, ascending. At least two that look whole are left, whatever the rule says."""
    steps = [step for step in usable_steps(run_dir) if step > 0]
    kept = _newest(run_dir, steps, retention.keep_last) | _kept_for_ever(run_dir, steps, retention)
    if kept.issuperset(steps):
        return []
    # A look at every file of a step, one for each rank of a job: at no more steps than it takes.
    looks = (_looks_whole(layout.step_folder(run_dir, step)) for step in sorted(kept, reverse=True))
    whole = sum(itertools.islice(filter(None, looks), _FEWEST))
    removed = []
    for step in reversed(steps):
        if step in kept:
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
        step = layout.step_of(left.name.partition(".")[0])
        # By the whole name: `step_5.notes.removed.tmp` is somebody's own.
        if step is not None and _UNFINISHED.fullmatch(left.name) and (why := _remove_tree(left)):
            report(step, why)
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
    # Of a name of its own: an earlier checkpoint of this step may still lie there, removed in part.
    doomed = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{_REMOVING}")
    os.rename(folder, doomed)
    if why := _remove_tree(doomed):
        raise OSError(why)


def _remove_tree(folder: Path) -> str | None:
    """Remove all of a folder that can be removed; the first reason why not everything could, if so."""
    errors: list[OSError] = []
    shutil.rmtree(folder, onerror=lambda _, __, failure: errors.append(failure[1]))  # type: ignore[arg-type]
    return describe(errors[0]) if errors else None


def remove_unfinished(run_dir: Path) -> list[str]:
    """Remove what a job that died left half written or half removed. The caller holds the run's lock.

    Returns:
        What could not be removed, a line each.
    """
    folder = layout.checkpoints_folder(run_dir)
    problems = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) and (why := _remove_tree(path)):
            problems.append(f"{path}: an earlier job's leftover could not be removed ({why})")
    for name in _WRITTEN_WHOLE:
        remove_leftovers(run_dir / name)
    return problems


def is_scheduled(folder: Path) -> bool:
    """Whether a checkpoint was saved at a multiple of `checkpoint.save_every_steps`, see `was_scheduled`."""
    try:
        return was_scheduled(folder, read_manifest(folder))
    except (UserError, OSError):
        return True


def was_scheduled(folder: Path, manifest: dict[str, Any]) -> bool:
    """What a checkpoint's manifest says; one of an older version says nothing, and its step is looked at.

    Args:
        folder: of the checkpoint, in a run's.
    """
    if "scheduled" in manifest:
        return bool(manifest["scheduled"])
    step, every = layout.step_of(folder.name), _save_every_steps(folder.parent.parent)
    return step is None or every is None or step % every == 0


def _save_every_steps(run_dir: Path) -> int | None:
    """As the run was last started; None where that is not known."""
    try:
        every = read_yaml(run_dir / "config.yaml")["checkpoint"]["save_every_steps"]
    except (UserError, KeyError, TypeError):
        return None
    return every if isinstance(every, int) and every > 0 else None


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
    except (UserError, OSError):
        return None
    return tokens if isinstance(tokens, int) else None


def _looks_whole(folder: Path) -> bool:
    """Every file is there in its size; hashing all checkpoints at each save would cost more than the save."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (UserError, OSError):
        return False
