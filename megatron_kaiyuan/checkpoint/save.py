"""Writing a checkpoint: temporary folder, flush, manifest, rename. Collective: every rank calls."""

from __future__ import annotations

import os
import shutil
import signal
from multiprocessing import resource_tracker
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
    _start_writers_helper()
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


def _start_writers_helper() -> None:
    """Start the process that megatron-core's writers report to, if it is not there yet, deaf to a stop signal.

    torchrun sends SIGTERM to the whole process group of a rank. The rank finishes its step and saves; without
    this the helper would be dead by then, and the last checkpoint lost. Blocked signals stay blocked in a
    child process, and wait for this one until they are let through again.
    """
    # It starts first by itself otherwise, and lets both signals through again when it does.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        filesystem_async._get_write_results_queue()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
