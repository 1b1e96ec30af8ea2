"""Process groups of a job: made once at the start, taken down once at the end."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

from megatron_kaiyuan.cluster.discover import Rank, discover
from megatron_kaiyuan.cluster.limits import TimeLimits, time_limits
from megatron_kaiyuan.cluster.loopback import interfaces
from megatron_kaiyuan.cluster.open_files import allow_open_files
from megatron_kaiyuan.cluster.start_check import Facts, holds_store, open_store, start_check
from megatron_kaiyuan.cluster.waiting import waiting
from megatron_kaiyuan.config import ParallelConfig
from megatron_kaiyuan.environment import environment
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.platform import Platform, current

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@contextlib.contextmanager
def process_groups(
    who: Rank,
    platform: Platform,
    parallel: ParallelConfig,
    facts: Facts | None = None,
    limits: TimeLimits | None = None,
) -> Iterator[None]:
    """torch.distributed and megatron-core's groups for the body of the `with`.

    After an exception no collective is called: the other ranks may be gone already.

    Args:
        facts: what has to be the same on every rank, by name.
        limits: None: what suits the device.

    Raises:
        RankMissing: a rank does not come within the time-out.
        UserError: ranks hold different facts, or the store's connections are more than rank 0 may open.
    """
    from megatron.core import parallel_state

    with _exported(who):
        limits = limits or time_limits(platform, parallel)
        platform.limit_collectives(limits.hang, limits.collective)
        timeout = timedelta(seconds=limits.collective)
        if raised := allow_open_files(who.world_size, holds_store(who)):
            log.info(raised)
        store = open_store(who, timeout)
        start_check(store, who, facts or {}, timeout)
        torch.distributed.init_process_group(
            platform.collective_backend,
            store=torch.distributed.PrefixStore("kaiyuan/groups", store),
            rank=who.rank,
            world_size=who.world_size,
            timeout=timeout,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_stages,
            distributed_timeout_minutes=limits.collective / 60,
            # No one uses them, and each takes a descriptor for each rank of the group.
            create_gloo_process_groups=False,
        )
        yield
        # Rank 0 speaks for all.
        with waiting(f"the other {who.world_size - 1} ranks to end") if who.rank == 0 else contextlib.nullcontext():
            torch.distributed.barrier()
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _exported(who: Rank) -> contextlib.AbstractContextManager[None]:
    """Pass to torch, and the libraries on top of it, what the launcher set under its own names.

    For the body only: a process that was started by this one afterwards is no rank of the job.
    """
    # What the user has set wins.
    inside = {name: value for name, value in interfaces(who).items() if name not in os.environ}
    return environment(
        {
            **inside,
            "RANK": str(who.rank),
            "WORLD_SIZE": str(who.world_size),
            "LOCAL_RANK": str(who.local_rank),
            "MASTER_ADDR": who.master_address,
            "MASTER_PORT": str(who.master_port),
        }
    )


def agree_on_error(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; when a user's mistake or a file stops it anywhere, every rank raises the same error.

    For start-up work (opening data, choosing a checkpoint), so that one line is printed and no rank is left
    waiting in a collective.

    Raises:
        UserError: the first failing rank's message, with the ranks that share it.
    """
    result, message = None, None
    try:
        result = action()
    except (UserError, OSError) as error:
        message = describe(error)
    messages = gather_if_any(message, message is not None)
    failing = [rank for rank, text in enumerate(messages) if text is not None]
    if failing:
        first = messages[failing[0]]
        everywhere = len(failing) == len(messages)
        where = "" if everywhere else f" (on rank {', '.join(map(str, failing[:8]))} of {len(messages)})"
        raise UserError(f"{first}{where}", every_rank=True)
    return result  # type: ignore[return-value]


def gather_if_any(value: Result, matters: bool) -> list[Result]:
    """Return every rank's value where it matters on any rank, else an empty list. Collective.

    Where it matters on none, as nearly always, this is the all-reduce of one number: to gather an object costs each
    rank time and memory for every other rank.
    """
    if sum_over_ranks(int(matters)) == 0:
        return []
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def sum_over_ranks(number: int) -> int:
    """Return the sum of a number of each rank. Collective."""
    total = torch.tensor([number], dtype=torch.int64, device=current().device)
    torch.distributed.all_reduce(total)
    return int(total)


def broadcast_from_rank_0(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 alone; every rank returns what it returned. Collective.

    Raises:
        UserError: what stopped rank 0.
    """
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = action()
        except (UserError, OSError) as error:
            answer[1] = describe(error)
    torch.distributed.broadcast_object_list(answer, src=0)
    result, message = answer
    if message is not None:
        raise UserError(message, every_rank=True)
    return result


def scatter_from_rank_0(action: Callable[[], Sequence[Result]]) -> Result:
    """Run `action` on rank 0 alone, which returns a value for each rank; return this rank's. Collective.

    A rank receives its own value, and room for the largest one.

    Raises:
        UserError: what stopped rank 0.
    """
    answers: list[Any] | None = None
    if torch.distributed.get_rank() == 0:
        try:
            answers = [(value, None) for value in action()]
        except (UserError, OSError) as error:
            answers = [(None, describe(error))] * torch.distributed.get_world_size()
    mine: list[Any] = [None]
    torch.distributed.scatter_object_list(mine, answers)
    result, message = mine[0]
    if message is not None:
        raise UserError(message, every_rank=True)
    return result  # type: ignore[no-any-return]


@contextlib.contextmanager
def single_process(platform: Platform) -> Iterator[None]:
    """Process groups of one, for commands that work on whole checkpoints whatever started them."""
    alone = discover({})
    with process_groups(alone, platform, ParallelConfig()):
        yield
