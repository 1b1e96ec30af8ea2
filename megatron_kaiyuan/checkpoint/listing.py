"""What lies in a run's checkpoints folder, for `kaiyuan checkpoint`. Needs neither torch nor a device."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.find import Found, describe_average, find_checkpoint
from megatron_kaiyuan.checkpoint.retention import was_scheduled
from megatron_kaiyuan.checkpoint.verify import problems_of, read_manifest
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.paths import user_path
from megatron_kaiyuan.progress import reading, say


@dataclass(frozen=True)
class ListedAverage:
    """An average in a run's folder.

    Attributes:
        what: kind and steps in words.
        average: what its manifest says of the kind, the weights and the sources; None: of an older version.
    """

    name: str
    what: str
    steps: list[int]
    tokens: int | None
    bytes: int
    saved: str
    average: dict[str, Any] | None


@dataclass(frozen=True)
class Listed:
    """One folder of a run's checkpoints.

    Attributes:
        step: None for a folder that was set aside.
        tokens: position in the token stream, as far as the manifest says.
        saved: when its manifest was written, ISO 8601, local time.
        problem: what its manifest lacks; None does not mean that its files are whole.
        scheduled: whether it was saved at a multiple of `checkpoint.save_every_steps`; None where its manifest cannot
            be read.
        ema_decay: of the average of the weights that it holds; None: it holds none.
    """

    name: str
    step: int | None
    tokens: int | None
    bytes: int
    saved: str | None
    is_latest: bool
    problem: str | None = None
    scheduled: bool | None = None
    ema_decay: float | None = None


def list_checkpoints(run_dir: Path) -> list[Listed]:
    """Steps, ascending, then what was set aside. Files are not read.

    Raises:
        UserError: there is no such run.
    """
    folder = require_run(run_dir)
    latest = layout.read_latest(run_dir)
    steps = [_listed(layout.step_folder(run_dir, step), step, latest) for step in layout.all_steps(run_dir)]
    others = sorted(path for path in folder.glob("step_*.*") if path.is_dir() and layout.step_of(path.name) is None)
    found = steps + [_listed(path, None, latest) for path in others]
    # A job that trains may have removed some of them since their names were read.
    return [one for one in found if one.problem is None or os.path.lexists(folder / one.name)]


def list_averages(run_dir: Path) -> list[ListedAverage]:
    """Averages that lie in a run's folder itself, by name. Files are not read."""
    found = []
    for path in sorted(run_dir.glob(f"*/{layout.MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
        except (UserError, OSError):
            # A folder of another kind, or one that is being written again.
            continue
        if steps := manifest.get("averaged_steps"):
            name, size = path.parent.name, size_of(path.parent)
            about, tokens = manifest.get("average"), manifest.get("tokens")
            found.append(ListedAverage(name, describe_average(manifest), steps, tokens, size, _saved(path), about))
    return found


def verify_checkpoints(run_dir: Path, step: int | None = None) -> Iterator[tuple[Listed, list[str]]]:
    """Read every file of all steps, or of one, and compare; each step with what is wrong with it.

    Args:
        run_dir: of a run, or of a single checkpoint, such as an averaged one.

    Raises:
        UserError: there is no such run or step.
    """
    if (run_dir / layout.MANIFEST).is_file() and step is None:
        yield _listed(run_dir, layout.step_of(run_dir.name), None), problems_in(run_dir)
        return
    listed = [found for found in list_checkpoints(run_dir) if found.step is not None]
    if step is not None:
        listed = [found for found in listed if found.step == step]
        if not listed:
            raise UserError(f"{layout.step_folder(run_dir, step)}: checkpoint not found; `list` says which there are")
    for found in listed:
        folder = layout.checkpoints_folder(run_dir) / found.name
        problems = problems_in(folder)
        if not problems or os.path.lexists(folder):
            yield found, problems
        elif step is not None:
            raise UserError(f"{folder}: was removed while it was read, as a run does with old checkpoints")


def problems_in(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, every file of it read."""
    try:
        files = read_manifest(folder)["files"]
    except (UserError, OSError) as error:
        return [describe(error)]
    return list(problems_of(folder, files, files).values())


def verify_and_tell(run_dir: Path, step: int | None, as_json: bool) -> str:
    """Verify, with a line for each step as it is done, or one JSON document.

    Returns:
        What is left to print.

    Raises:
        UserError: a step is damaged; also after the JSON document.
    """
    results = []
    with reading("checkpoint verify", _bytes_of(run_dir, step)):
        for found, problems in verify_checkpoints(run_dir, step):
            results.append((found, problems))
            if not as_json:
                say(f"{found.name}: {'; '.join(problems) or f'whole, {megabytes(found.bytes)}'}")
    damaged = [found.name for found, problems in results if problems]
    if as_json:
        rows = [{"name": found.name, "step": found.step, "problems": problems} for found, problems in results]
        print(json.dumps({"run_dir": str(run_dir), "checkpoints": rows}, indent=1), flush=True)
    if damaged:
        raise UserError(
            f"{run_dir}: {len(damaged)} of {len(results)} checkpoints damaged ({', '.join(damaged)}); training sets "
            "them aside and continues from the newest whole one, or restore them from a copy"
        )
    size = sum(found.bytes for found, _ in results)
    return "" if as_json else f"checkpoint verify: {len(results)} checkpoints whole, {megabytes(size)}"


def _bytes_of(run_dir: Path, step: int | None) -> int:
    listed = (found for found in list_checkpoints(run_dir) if found.step is not None)
    return sum(found.bytes for found in listed if step in (None, found.step))


def checkpoint_named(run_dir: Path, name: str) -> Found:
    """The checkpoint that a word on the command line means: a step of the run, a checkpoint, or the newest of a run.

    Raises:
        UserError: there is none.
    """
    folder = layout.step_folder(run_dir, int(name)) if name.isdigit() else user_path(name)
    try:
        return find_checkpoint(folder)
    except UserError as error:
        raise UserError(f"{error}; `kaiyuan checkpoint list {run_dir}` says which there are") from error


def summary(listed: list[Listed]) -> str:
    """One line about all of them."""
    steps = [found for found in listed if found.step is not None]
    latest = next((found.name for found in steps if found.is_latest), "none of them")
    aside = f", {len(listed) - len(steps)} set aside" if len(listed) > len(steps) else ""
    return f"{len(steps)} steps{aside}, {megabytes(sum(found.bytes for found in listed))}, latest is {latest}"


def as_table(listed: list[Listed]) -> str:
    """Lines for a terminal."""
    rows = [("checkpoint", "tokens", "size", "saved", "")]
    for found in listed:
        tokens = "" if found.tokens is None else f"{found.tokens:,}"
        words = ["latest"] * found.is_latest + ["not scheduled"] * (found.scheduled is False)
        words += [] if found.ema_decay is None else [f"EMA {found.ema_decay:g}"]
        note = found.problem or ", ".join(words)
        rows.append((found.name, tokens, megabytes(found.bytes), found.saved or "", note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:<{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    )


def averages_as_table(averages: list[ListedAverage]) -> str:
    """Lines for a terminal, with the weight of each step."""
    lines = []
    for found in averages:
        weights = found.average["weights"] if found.average else {}
        shown = ", ".join(f"{weights[str(step)]:.3f}" for step in found.steps if str(step) in weights)
        lines.append(f"{found.name}: {found.what}{f', weights {shown}' if shown else ''}, {megabytes(found.bytes)}")
    return "\n".join(lines)


def as_json(listed: Sequence[Listed | ListedAverage]) -> list[dict[str, Any]]:
    return [asdict(found) for found in listed]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder, from which a job that prunes may be removing them."""
    size = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size if path.is_file() else 0
    return size


def require_run(run_dir: Path) -> Path:
    """The folder of a run's checkpoints.

    Raises:
        UserError: there is none.
    """
    folder = layout.checkpoints_folder(run_dir)
    if not folder.is_dir():
        name = "is a checkpoint" if (run_dir / layout.MANIFEST).is_file() else "holds no checkpoints folder"
        raise UserError(f"{run_dir}: {name}; name a run's folder{near_run(run_dir)}")
    return folder


def _listed(folder: Path, step: int | None, latest: str | None) -> Listed:
    size = size_of(folder)
    tokens, saved, problem, scheduled = None, None, None, None
    ema: dict[str, Any] = {}
    try:
        manifest = read_manifest(folder)
        tokens, scheduled = manifest.get("tokens"), was_scheduled(folder, manifest)
        ema = manifest.get("ema") or {}
        saved = _saved(folder / layout.MANIFEST)
    except (UserError, OSError) as error:
        problem = describe(error)
    return Listed(folder.name, step, tokens, size, saved, folder.name == latest, problem, scheduled, ema.get("decay"))


def _saved(manifest: Path) -> str:
    return datetime.fromtimestamp(manifest.stat().st_mtime).astimezone().isoformat(timespec="seconds")
