"""Averaging the last checkpoints of a run into one that can be exported or started from."""

from __future__ import annotations

from pathlib import Path

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.load import load_common, load_weights, whole
from megatron_kaiyuan.checkpoint.save import save_folder
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.optim.average import equal_mean


def average_checkpoints(run_dir: Path, last: int, output: Path) -> str:
    """Write the equal mean of the newest `last` trained checkpoints; one process, process groups initialised.

    Returns:
        A one-line summary.

    Raises:
        UserError: there are fewer checkpoints, or one of them is damaged.
    """
    trained = [step for step in layout.steps(run_dir) if step > 0]
    if len(trained) < last:
        raise UserError(
            f"{layout.checkpoints_folder(run_dir)}: {last} trained checkpoints asked for, {len(trained)} found; "
            "ask for fewer (--last), or train further"
        )
    steps = trained[-last:]
    folders = [layout.step_folder(run_dir, step) for step in steps]
    mean = equal_mean(load_weights(folder) for folder in folders)
    newest = load_common(folders[-1])
    save_folder(output, {**whole(mean), "run": newest["run"], "averaged_steps": steps}, averaged_steps=steps)
    return f"average: mean of steps {', '.join(map(str, steps))} in {output}"
