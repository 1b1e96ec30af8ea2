"""Writing a checkpoint: temporary folder, flush, manifest, rename. Collective: every rank calls."""

from __future__ import annotations

import os
import queue
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import fsync_path


def save_step(run_dir: Path, step: int, sharded_state: dict[str, Any], keep_last: int) -> Path:
    """Save one step of a run, move `latest` to it and prune older ones.

    Args:
        sharded_state: megatron-core sharded tensors and objects; the rest is common to all ranks.

    Returns:
        The folder of the step.
    """
    folder = layout.step_folder(run_dir, step)
    save_folder(folder, sharded_state)
    if torch.distributed.get_rank() == 0:
        layout.point_latest(run_dir, step)
        layout.prune(run_dir, keep_last)
    torch.distributed.barrier()
    return folder


def save_folder(folder: Path, sharded_state: dict[str, Any]) -> None:
    """Write a whole checkpoint folder; on failure `folder` is as it was before.

    Raises:
        UserError: the files could not be written, for a full disk say.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    is_writer = torch.distributed.get_rank() == 0
    if is_writer:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    _collect_results_in_this_process()
    try:
        dist_checkpointing.save(sharded_state, str(temporary))
    except CheckpointException as error:
        if is_writer:
            shutil.rmtree(temporary, ignore_errors=True)
        # Raised on every rank; the first one knows the causes.
        causes = {f"rank {rank}: {' '.join(str(cause[0]).split())}" for rank, cause in error.failures.items()}
        raise UserError(
            f"{folder}: the checkpoint could not be written ({'; '.join(sorted(causes))}); older ones are "
            "as they were; make room or choose another run_dir, and start again",
            every_rank=True,
        ) from error
    torch.distributed.barrier()
    if is_writer:
        layout.write_manifest(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            fsync_path(path)
        if folder.exists():
            # Only a step that was found damaged, or an average made again, can stand there.
            aside = folder.with_name(f"{folder.name}.replaced")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
        os.rename(temporary, folder)
        fsync_path(folder.parent)
    torch.distributed.barrier()


def _collect_results_in_this_process() -> None:
    """Give megatron-core's writers a queue of this process to report to, instead of a helper process.

    It starts a manager process for that queue, which asynchronous saving needs and this one does not. The
    manager dies of the SIGTERM that torchrun sends to the whole process group of a rank, and takes the last
    checkpoint with it; protected from the signal, it outlives a rank that is killed.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.SimpleQueue()
