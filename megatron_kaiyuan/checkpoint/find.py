"""From what a user names, a run or a checkpoint, to the checkpoint that is meant. Needs neither torch nor a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import read_manifest, usable_steps
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import near_run

# Steps that an error names, those next to the one that was asked for.
_NAMED = 6
# Of a checkpoint: the network's own, or the EMA of them that the run keeps (`ema.decay`).
Weights = Literal["model", "ema"]
_MEANS = {
    "equal": "mean",
    "ema": "EMA",
    "one_minus_sqrt": "1-sqrt mean",
    "weighted": "weighted mean",
}


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
        folder: its own.
        run_dir: the run that it lies in; None: in none.
        what: `step 400`, `step 400, EMA`, or `mean of steps 300, 400`.
        weights: which of them are meant.
    """

    folder: Path
    run_dir: Path | None
    what: str
    weights: Weights = "model"

    @property
    def name(self) -> str:
        """For people: the run and the step, or the folder and the step."""
        return f"{self.run_dir or self.folder}, {self.what}"


def find_checkpoint(path: Path, step: int | None = None, weights: Weights = "model") -> Found:
    """The checkpoint in a folder, or one of a run. Files are not compared with their checksums.

    Args:
        step: of the run; None: the newest.
        weights: the network's own, or their EMA.

    Raises:
        UserError: there is none, or it holds no EMA.
    """
    if (path / layout.MANIFEST).is_file():
        if step is not None:
            raise UserError(
                f"{path}: is one checkpoint, of which --step {step} chooses none; name its run, or leave it out"
            )
        return _found(path, weights)
    if layout.checkpoints_folder(path).is_dir():
        return _found(layout.step_folder(path, _step_of(path, step)), weights)
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


def _found(folder: Path, weights: Weights) -> Found:
    manifest = read_manifest(folder)
    if weights == "ema" and "ema" not in manifest:
        raise UserError(
            f"{folder}: holds no EMA of the weights (ema.decay was not set when it was saved); name a step with one, "
            "or leave out --weights ema"
        )
    if manifest.get("averaged_steps"):
        return Found(folder, _run_of(folder.parent), describe_average(manifest))
    if kind := manifest.get("imported"):
        return Found(folder, None, f"import of a {kind} folder")
    # Where a step was copied to a place of its own, that place is not a run.
    run_dir = _run_of(folder.parent.parent) if folder.resolve().parent.name == "checkpoints" else None
    what = f"step {manifest.get('step', layout.step_of(folder.name))}{', EMA' if weights == 'ema' else ''}"
    return Found(folder, run_dir, what, weights)


def describe_average(manifest: dict[str, Any]) -> str:
    """Return the kind and the steps of an average, as its manifest has them: `mean of steps 300, 400`."""
    # Before there were several kinds, each was the equal mean.
    kind = (manifest.get("average") or {}).get("kind", "equal")
    steps = manifest["averaged_steps"]
    return f"{_MEANS[kind]} of step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def _run_of(folder: Path) -> Path | None:
    return folder if layout.checkpoints_folder(folder).is_dir() else None
