"""Removing checkpoints by hand, which asks more than the removal after a save: two that stay are read through first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.checkpoint import layout, retention
from megatron_kaiyuan.checkpoint.listing import megabytes, problems_in, require_run, size_of
from megatron_kaiyuan.checkpoint.lock import RunLock
from megatron_kaiyuan.errors import UserError

_FEWEST = 2


@dataclass(frozen=True)
class Pruned:
    """What was removed, or with `dry_run` would be; `problems` says what could not be."""

    removed: list[int]
    kept: list[int]
    bytes: int
    dry_run: bool
    problems: list[str]

    def summary(self) -> str:
        """One line."""
        steps = ", ".join(map(str, self.removed)) or "nothing"
        would = "would remove" if self.dry_run else "removed"
        left = ", ".join(map(str, self.kept))
        problems = "".join(f"; {problem}" for problem in self.problems)
        return f"checkpoint prune: {would} {steps} ({megabytes(self.bytes)}), kept {left}{problems}"


def prune(run_dir: Path, rule: retention.Retention, dry_run: bool = False) -> Pruned:
    """Remove the steps that a rule does not keep; step 0, the untrained weights, stays.

    Raises:
        UserError: there is no such run, a job is training in it, or fewer than two of those that stay are whole.
    """
    require_run(run_dir)
    with contextlib.nullcontext() if dry_run else _lock(run_dir):
        removed = retention.removable(run_dir, rule)
        kept = [step for step in layout.steps(run_dir) if step not in removed]
        size = sum(size_of(layout.step_folder(run_dir, step)) for step in removed)
        if removed:
            _require_two_whole(run_dir, [step for step in kept if step > 0])
        problems: dict[int, str] = {}
        if removed and not dry_run:
            removed = retention.prune(run_dir, rule, problems.__setitem__)
    return Pruned(
        removed, kept, size, dry_run, [f"step {step} could not be removed: {why}" for step, why in problems.items()]
    )


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    lock = RunLock(run_dir)
    try:
        yield
    finally:
        lock.release()


def _require_two_whole(run_dir: Path, steps: list[int]) -> None:
    whole, problems = 0, []
    for step in reversed(steps):
        found = problems_in(layout.step_folder(run_dir, step))
        problems += found
        whole += not found
        if whole == _FEWEST:
            return
    raise UserError(
        f"{run_dir}: only {whole} of the checkpoints that would stay are whole "
        f"({[*problems, 'there are no more'][0]}); nothing was removed: keep more, or move the damaged ones away"
    )
