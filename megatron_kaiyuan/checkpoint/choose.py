"""Which step a run continues from: the newest one that is whole, the same on every rank.

The steps on disk are what counts. `latest` is a note about them: a job that died between the renaming of a step and
the moving of `latest` leaves it at the step before, and a step that was removed leaves it dangling. Both are reported
and mended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import Files, problems_of, read_manifest, shares
from megatron_kaiyuan.cluster.groups import agree_on_error, broadcast_from_rank_0, gather_if_any, scatter_from_rank_0
from megatron_kaiyuan.cluster.many_objects import collector_paused
from megatron_kaiyuan.errors import UserError, describe


@dataclass(frozen=True)
class ResumePoint:
    """The step to continue from.

    Attributes:
        step: None for a new run.
        problems: what was found on the way, one line each, the same on every rank.
    """

    step: int | None
    problems: list[str] = field(default_factory=list)


def choose_step(run_dir: Path, strict: bool = False) -> ResumePoint:
    """Verify steps from the newest down until one is whole; set the damaged ones aside. Collective.

    A damaged step becomes `step_N.damaged`: it is kept, and its place is free for the run to save again.

    Args:
        strict: refuse when the newest step is damaged or gone, and change nothing.

    Raises:
        UserError: with `strict`, something was lost; else, there are or were checkpoints, but none is whole:
            starting again would throw the run away.
    """
    steps, latest = broadcast_from_rank_0(lambda: (layout.all_steps(run_dir), layout.read_latest(run_dir)))
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        problems = verify_together(layout.step_folder(run_dir, step))
        if not problems:
            return _settle(run_dir, step, damaged, steps, latest, strict)
        damaged[step] = problems[0] + (f" (and {len(problems) - 1} more files)" if len(problems) > 1 else "")
    _refuse_lost_run(run_dir, damaged, latest)
    return ResumePoint(None)


@collector_paused()
def verify_together(folder: Path) -> list[str]:
    """Compare every file with the manifest, each rank its share of the bytes. Collective.

    Returns:
        What is wrong with the checkpoint, the same list on every rank; empty when it is whole.

    Raises:
        UserError: a rank reads other bytes than rank 0 does: that is no damage, and another start may go well.
    """
    # One rank reads the manifest, which has a line for every rank of the job that wrote it.
    share = scatter_from_rank_0(lambda: _shares_or_problem(folder))
    mine = {layout.MANIFEST: share} if isinstance(share, str) else problems_of(folder, share, share)
    everyone = gather_if_any(mine, bool(mine))
    problems = {name: problem for share in reversed(everyone) for name, problem in share.items()}
    # A step is set aside only if rank 0 sees the damage too, and sees it again.
    if problems and not broadcast_from_rank_0(lambda: _confirmed(folder, list(problems))):
        rank, first = next((rank, next(iter(share.values()))) for rank, share in enumerate(everyone) if share)
        raise UserError(
            f"rank {rank} could not read what rank 0 then could ({first}); check that run_dir lies on a file system "
            "that every machine sees, and start again; nothing was changed",
            every_rank=True,
        )
    return list(problems.values())


def _shares_or_problem(folder: Path) -> list[Files | str]:
    """Return the files for each rank to read; where the manifest cannot be read, the reason as that of rank 0."""
    ranks = torch.distributed.get_world_size()
    try:
        files: Files = read_manifest(folder)["files"]
    except (UserError, OSError) as error:
        return [describe(error), *({} for _ in range(ranks - 1))]
    return [{name: files[name] for name in names} for names in shares(files, ranks)]


def _confirmed(folder: Path, names: list[str]) -> bool:
    try:
        files = read_manifest(folder)["files"]
    except (UserError, OSError):
        return True
    return bool(problems_of(folder, files, [name for name in names if name in files]))


def _settle(
    run_dir: Path, chosen: int, damaged: dict[int, str], steps: list[int], latest: str | None, strict: bool
) -> ResumePoint:
    """Say what was wrong, refuse if that was asked for, else mend it."""
    gone = _gone(run_dir, steps, latest)
    lost = [*damaged.values(), *gone]
    if strict and lost:
        raise UserError(
            f"{lost[0]}; step {chosen} is whole, but checkpoint.strict refuses to go back to it: restore what is "
            "missing, or start without strict",
            every_rank=True,
        )
    problems = [f"{problem}; step_{step} is set aside, step {chosen} is used" for step, problem in damaged.items()]
    problems += [f"{problem}; step {chosen} is used" for problem in gone]
    if not lost and latest != f"step_{chosen}":
        problems.append(f"{run_dir / 'latest'}: says {latest or 'nothing'}, but step {chosen} is whole and is used")
    agree_on_error(lambda: _mend(run_dir, chosen, damaged, latest))
    return ResumePoint(chosen, problems)


def _gone(run_dir: Path, steps: list[int], latest: str | None) -> list[str]:
    """A step newer than all others that only `latest` still knows of."""
    step = layout.step_of(latest) if latest else None
    if latest and (step is None or step > max(steps)):
        return [f"{run_dir / 'latest'}: says {latest!r}, which is not in {layout.checkpoints_folder(run_dir)}"]
    return []


def _mend(run_dir: Path, chosen: int, damaged: dict[int, str], latest: str | None) -> None:
    if torch.distributed.get_rank() == 0:
        for step in damaged:
            layout.set_aside(layout.step_folder(run_dir, step), "damaged")
        if latest != f"step_{chosen}":
            layout.point_latest(run_dir, chosen)


def _refuse_lost_run(run_dir: Path, damaged: dict[int, str], latest: str | None) -> None:
    where = layout.checkpoints_folder(run_dir)
    if damaged:
        raise UserError(
            f"{where}: no checkpoint is whole ({damaged[max(damaged)]}); restore one from a copy, or choose another "
            "run_dir to start again",
            every_rank=True,
        )
    if latest:
        raise UserError(
            f"{run_dir / 'latest'}: says {latest!r}, but {where} holds no checkpoint; bring them back, or remove "
            "`latest` to start again",
            every_rank=True,
        )
