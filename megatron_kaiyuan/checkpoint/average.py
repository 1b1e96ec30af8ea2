"""Averaging the last checkpoints of a run into one that can be exported or started from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.load import load_common, load_weights, whole
from megatron_kaiyuan.checkpoint.save import require_room, save_folder
from megatron_kaiyuan.checkpoint.verify import read_manifest
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.average import equal_mean
from megatron_kaiyuan.outputs import Output, claim, identity_of, refuse_unlisted


def average_checkpoints(run_dir: Path, last: int, output: Path, force: bool = False) -> str:
    """Write the equal mean of the newest `last` trained checkpoints; one process, process groups initialised.

    Args:
        output: a new folder, or an earlier average of the same checkpoints.
        force: an average of other checkpoints may be replaced.

    Returns:
        A one-line summary.

    Raises:
        UserError: there are fewer checkpoints, one of them is damaged, or `output` holds something else.
    """
    trained = [step for step in layout.steps(run_dir) if step > 0]
    if len(trained) < last:
        raise UserError(
            f"{layout.checkpoints_folder(run_dir)}: {last} trained checkpoints asked for, {len(trained)} found; "
            "ask for fewer (--last), or train further"
        )
    steps = trained[-last:]
    folders = [layout.step_folder(run_dir, step) for step in steps]
    identity = identity_of("average", [read_manifest(folder)["seal"] for folder in folders])
    place = Output(output, "an averaged checkpoint")
    with claim(place, identity, _earlier, force=force):
        mean = equal_mean(_weights(folders, place.path))
        newest = load_common(folders[-1])
        state = {**whole(mean), "run": newest["run"], "averaged_steps": steps}
        save_folder(place.path, state, averaged_steps=steps, identity=identity)
    return f"average: mean of steps {', '.join(map(str, steps))} in {output}"


def _weights(folders: Sequence[Path], output: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights of each checkpoint; the first ones say how much room their mean will take."""
    for number, folder in enumerate(folders):
        weights = load_weights(folder)
        if number == 0:
            require_room(output, sum(tensor.nbytes for tensor in weights.values()))
        yield weights


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
    return str(manifest.get("identity", ""))
