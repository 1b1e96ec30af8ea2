"""Averaging checkpoints of a run into one that can be exported or started from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.load import load_common, load_weights, whole
from megatron_kaiyuan.checkpoint.retention import is_scheduled
from megatron_kaiyuan.checkpoint.save import require_room, save_folder
from megatron_kaiyuan.checkpoint.verify import read_manifest, usable_steps
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.average import equal_mean
from megatron_kaiyuan.outputs import Output, claim, identity_of, refuse_changed, refuse_unlisted
from megatron_kaiyuan.progress import Progress


@dataclass(frozen=True)
class Selection:
    """Which checkpoints to average.

    Attributes:
        last: how many of the newest scheduled ones (saved at a multiple of `checkpoint.save_every_steps`).
        stride: steps between them; None: every scheduled one.
        steps: exactly these, scheduled or not; the other two do not count then.
    """

    last: int = 8
    stride: int | None = None
    steps: tuple[int, ...] = ()


def select(run_dir: Path, wanted: Selection) -> list[int]:
    """The steps that a selection means, ascending. Step 0, the untrained weights, is none of them unless it is named.

    Raises:
        UserError: there are not so many, or one of them is not there.
    """
    there = usable_steps(run_dir)
    folder = layout.checkpoints_folder(run_dir)
    if wanted.steps:
        if missing := [step for step in wanted.steps if step not in there]:
            raise UserError(f"{folder}: holds no step_{missing[0]}; `kaiyuan checkpoint list` says which there are")
        return sorted(set(wanted.steps))
    scheduled = [step for step in there if step > 0 and is_scheduled(layout.step_folder(run_dir, step))]
    if wanted.stride:
        newest = scheduled[-1] if scheduled else 0
        chosen = [newest - wanted.stride * back for back in range(wanted.last)][::-1]
        if missing := [step for step in chosen if step not in scheduled]:
            raise UserError(
                f"{folder}: holds no scheduled step_{missing[-1]} for --last {wanted.last} --stride {wanted.stride}; "
                "ask for fewer, for another --stride, or name them with --steps"
            )
        return chosen
    if len(scheduled) < wanted.last:
        raise UserError(
            f"{folder}: {wanted.last} trained checkpoints asked for, {len(scheduled)} scheduled ones found (saved at "
            "multiples of checkpoint.save_every_steps); ask for fewer (--last), name them (--steps), or train further"
        )
    return scheduled[-wanted.last :]


def average_checkpoints(run_dir: Path, wanted: Selection, output: Path, force: bool = False) -> str:
    """Write the equal mean of checkpoints; one process, process groups initialised.

    Args:
        output: a new folder, or an earlier average of the same checkpoints.
        force: an average of other checkpoints may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: there are fewer checkpoints, one of them is damaged, or `output` holds something else.
    """
    steps = select(run_dir, wanted)
    folders = [layout.step_folder(run_dir, step) for step in steps]
    identity = identity_of("average", [read_manifest(folder)["seal"] for folder in folders])
    place = Output(output, "an averaged checkpoint")
    with claim(place, identity, _earlier, force=force):
        mean = equal_mean(_weights(folders, place.path))
        newest = load_common(folders[-1])
        state = {**whole(mean), "run": newest["run"], "averaged_steps": steps}
        save_folder(place.path, state, averaged_steps=steps, identity=identity)
    return f"average: mean of steps {', '.join(map(str, steps))}{_remarks(run_dir, steps)} in {output}"


def _remarks(run_dir: Path, steps: Sequence[int]) -> str:
    """What the user may not expect of the choice."""
    remarks = []
    if len({after - before for before, after in itertools.pairwise(steps)}) > 1:
        remarks.append("unevenly spaced")
    if newer := [step for step in usable_steps(run_dir) if step > steps[-1]]:
        remarks.append(f"without the newer {', '.join(map(str, newer))}")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _weights(folders: Sequence[Path], output: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights of each checkpoint; the first ones say how much room their mean will take."""
    with Progress("average", len(folders), "checkpoints") as progress:
        for number, folder in enumerate(folders):
            weights = load_weights(folder)
            if number == 0:
                require_room(output, sum(tensor.nbytes for tensor in weights.values()))
            yield weights
            progress.advance()


def _earlier(output: Output) -> str | None:
    if not output.path.exists() or not any(output.path.iterdir()):
        return None
    try:
        manifest = read_manifest(output.path)
    except UserError:
        raise output.in_the_way(output.path) from None
    if "averaged_steps" not in manifest:
        raise output.in_the_way(output.path)
    refuse_unlisted(output, manifest["files"])
    refuse_changed(output, manifest["files"])
    return str(manifest.get("identity", ""))
