"""From what a user names, a run or a checkpoint, to the checkpoint that is meant. Needs neither torch nor a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import read_manifest, usable_steps
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import near_run

# Steps that an error names, those next to the one that was asked for.
_NAMED = 6


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
        folder: its own.
        run_dir: the run that it lies in; None: in none.
        what: `step 400`, or `mean of steps 300, 400`.
    """

    folder: Path
    run_dir: Path | None
    what: str

    @property
    def name(self) -> str:
        """For people: the run and the step, or the folder and the step."""
        return f"{self.run_dir or self.folder}, {self.what}"


def find_checkpoint(path: Path, step: int | None = None) -> Found:
    """The checkpoint in a folder, or one of a run. Files are not compared with their checksums.

    Args:
        step: of the run; None: the newest.

    Raises:
        UserError: there is none.
    """
    if (path / layout.MANIFEST).is_file():
        if step is not None:
            raise UserError(
                f"{path}: is one checkpoint, of which --step {step} chooses none; name its run, or leave it out"
            )
        return _found(path)
    if layout.checkpoints_folder(path).is_dir():
        return _found(layout.step_folder(path, _step_of(path, step)))
    if not path.exists():
        raise UserError(f"{path}: not found; name a run's folder, or a checkpoint's{near_run(path)}")
    raise UserError(
        f"{path}: is neither a run's folder (no checkpoints) nor a checkpoint (no {layout.MANIFEST}){near_run(path)}"
    )


def _step_of(run_dir: Path, step: int | None) -> int:
    steps = usable_steps(run_dir)
    if not steps:
        raise UserError(f"{layout.checkpoints_folder(run_dir)}: holds no finished checkpoint; train the run further")
    if step is not None and step not in steps:
        near = sorted(sorted(steps, key=lambda one: abs(one - step))[:_NAMED])
        raise UserError(
            f"{layout.checkpoints_folder(run_dir)}: holds no finished checkpoint of step {step}, but of "
            f"{', '.join(map(str, near))}{' and others' if len(steps) > len(near) else ''}"
        )
    return steps[-1] if step is None else step


def _found(folder: Path) -> Found:
    manifest = read_manifest(folder)
    if steps := manifest.get("averaged_steps"):
        return Found(folder, _run_of(folder.parent), f"mean of steps {', '.join(map(str, steps))}")
    # Where a step was copied to a place of its own, that place is not a run.
    run_dir = _run_of(folder.parent.parent) if folder.resolve().parent.name == "checkpoints" else None
    return Found(folder, run_dir, f"step {manifest.get('step', layout.step_of(folder.name))}")


def _run_of(folder: Path) -> Path | None:
    return folder if layout.checkpoints_folder(folder).is_dir() else None
