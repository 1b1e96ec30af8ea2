"""The ranks that a launcher started for an evaluation; without a launcher there is one."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from megatron_kaiyuan import exit_codes, logs, platform
from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.cluster.parent import end_with_launcher
from megatron_kaiyuan.cluster.speaker import let_another_speak
from megatron_kaiyuan.cluster.start_check import RankMissing
from megatron_kaiyuan.config import ParallelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform import Platform

# Rank 0 may fetch the data of tasks while the others wait.
_TIMEOUT_MINUTES = 120.0


@contextlib.contextmanager
def evaluation_ranks(device: str, parallel: ParallelConfig) -> Iterator[Platform]:
    """Make a platform active on each rank, and megatron-core's groups for the body.

    An error ends all ranks; one line is printed of a mistake that every rank sees.

    Raises:
        UserError: the number of processes does not fit the sizes, or what the body raises.
    """
    who = discover(os.environ)
    if who.world_size > 1:
        end_with_launcher(os.environ)
        logs.set_rank(who.rank)
    try:
        with _groups(who, device, parallel) as found:
            yield found
    except RankMissing as error:
        if error.speaker:
            raise UserError(str(error)) from error
        _give_way()
    except UserError:
        if who.rank != 0:
            _give_way()
        raise
    except Exception:
        if who.world_size == 1:
            raise
        traceback.print_exc()
        # The interpreter's own end may wait for ranks that wait for this one.
        os._exit(exit_codes.FAILED)


@contextlib.contextmanager
def _groups(who: Rank, device: str, parallel: ParallelConfig) -> Iterator[Platform]:
    if who.world_size % parallel.model_parallel_size:
        raise UserError(
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} x --pipeline-model-parallel-size "
            f"{parallel.pipeline_model_parallel_size}: does not divide {who.world_size} process"
            f"{'' if who.world_size == 1 else 'es'}; start a multiple of {parallel.model_parallel_size}, as with "
            "torchrun --nproc-per-node"
        )
    found = platform.activate(device, who.local_rank, who.local_world_size or who.world_size)
    from megatron_kaiyuan.cluster.groups import process_groups

    waiting = parallel.model_copy(update={"timeout_minutes": _TIMEOUT_MINUTES})
    with process_groups(who, found, waiting):
        yield found


def _give_way() -> NoReturn:
    """Let the rank that has printed the error end the job; if none does, this one ends it."""
    let_another_speak(exit_codes.MISTAKE)
    sys.stdout.flush()
    os._exit(exit_codes.MISTAKE)
