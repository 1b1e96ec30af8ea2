"""A training process from its first line to its exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megatron_kaiyuan import exit_codes, logs, platform
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.cluster.bad_nodes import node_name, write_bad_nodes
from megatron_kaiyuan.cluster.parent import end_with_launcher
from megatron_kaiyuan.cluster.speaker import let_another_speak
from megatron_kaiyuan.cluster.start_check import RankMissing
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.errors import UserError, describe, excerpt
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.platform.base import NoDevice
from megatron_kaiyuan.streams import make_output_optional
from megatron_kaiyuan.train.startup import Startup

if TYPE_CHECKING:
    from megatron_kaiyuan.train.start import Ending

log = logging.getLogger(__name__)

# What gloo and NCCL say when a rank at the other end of a connection has gone.
_PEER_LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket Timeout|remote process exited", re.I)

# What CUDA's runtime says of a device that does not work any more (cudaGetErrorString), but for what a kernel's own
# mistake may cause too.
_DEVICE_LOST = re.compile(
    r"uncorrectable (ECC|NVLink) error|no CUDA-capable device|hardware stack error|busy or unavailable|GPU is lost",
    re.I,
)


def run_on_this_rank(recipe: Path, overrides: Sequence[str]) -> None:
    """Train, whatever launcher started this process.

    Returns where the run has come to its end; else exits with 128 and the number of the signal that stopped it (143:
    SIGTERM), on every rank and after all of them have saved; with 2 after a mistake, which is printed once: by rank 0
    when every rank sees it, else by the rank that found it; with 3 where a run that has trained before misses a device
    here; with 1 after an exception, with its trace, or when another rank has gone or never came. Nodes that lost a
    device are named in the run folder.
    """
    # metrics.jsonl has all that is printed.
    make_output_optional()
    logs.set_up()
    end_with_launcher(os.environ)
    startup = Startup()
    who = discover(os.environ)
    logs.set_rank(who.rank)
    log.debug(f"rank {who.rank} of {who.world_size}, process {os.getpid()}, started by {who.launcher}")
    if who.is_scheduler:
        return
    try:
        ending = _train(recipe, overrides, who, startup)
    except (UserError, OSError) as error:
        code = exit_codes.BAD_NODE if isinstance(error, NoDevice) and error.lost else exit_codes.MISTAKE
        if isinstance(error, UserError) and _another_prints(error, who):
            let_another_speak(code)
            _exit(code, "")
        if code == exit_codes.MISTAKE:
            _leave_mistake(recipe, overrides, who, describe(error))
        _exit(code, describe(error))
    except RankMissing as error:
        if not error.speaker:
            let_another_speak(exit_codes.FAILED)
        _exit(exit_codes.FAILED, f"{error} (parallel.timeout_minutes)" if error.speaker else "")
    except Exception as error:
        if _PEER_LOST.search(str(error)):
            _exit(exit_codes.FAILED, f"rank {who.rank}: lost the connection to another rank, which has ended")
        traceback.print_exc()
        _exit(exit_codes.FAILED, f"rank {who.rank}: ended by the exception above")
    if who.rank == 0:
        print(ending.summary, flush=True)
    if not ending.finished:
        sys.exit(exit_codes.of_signal(ending.signal))


def _train(recipe: Path, overrides: Sequence[str], who: Rank, startup: Startup) -> Ending:
    try:
        run = load_run(recipe, overrides)
        # The first line: everything else may take a while, or fail.
        log.info(f"run: {run.run_dir.absolute()}, by {recipe.absolute()}")
        # Where a launcher does not say how many ranks a node has, all of them may be on this one.
        neighbours = who.local_world_size or who.world_size
        device = platform.activate(run.platform, who.local_rank, neighbours, run.mindspeed)
    except UserError as error:
        # All processes read the same recipe: one of them speaks. Only a missing device is a rank's own, or its node's.
        error.every_rank = not isinstance(error, NoDevice)
        if isinstance(error, NoDevice) and layout.read_latest(run.run_dir) is not None:
            # The run has trained before: this is the node's fault, not the recipe's.
            error.lost = write_bad_nodes(run.run_dir, [node_name()], str(error))
        raise
    # Only now: a platform has to be active before megatron-core is imported.
    from torch.distributed.elastic.multiprocessing.errors import record

    from megatron_kaiyuan.train.start import train

    startup.ended("imports")
    try:
        # Leaves an exception with its trace where torchrun looks for it; elsewhere it does nothing.
        return record(train)(run, who, device, startup)  # type: ignore[return-value]
    except RuntimeError as error:
        if _DEVICE_LOST.search(str(error)):
            write_bad_nodes(run.run_dir, [node_name()], f"rank {who.rank}: {excerpt(error)}")
        raise


def _leave_mistake(recipe: Path, overrides: Sequence[str], who: Rank, message: str) -> None:
    """Say in the run folder, where there is one, that another start would end in the same way.

    Launchers do not pass on this rank's exit code where others end with a higher one, or pass on none.
    """
    with contextlib.suppress(UserError, OSError):
        run_dir = load_run(recipe, overrides).run_dir
        if run_dir.is_dir():
            write_json(run_dir / layout.MISTAKE, {"rank": who.rank, "message": message, "time": time.time()})


def _another_prints(error: UserError, who: Rank) -> bool:
    """Whether the same error is printed by rank 0, or by the first rank of this node."""
    if isinstance(error, NoDevice):
        return error.whole_node and who.local_rank != 0
    return error.every_rank and who.rank != 0


def _exit(code: int, message: str) -> NoReturn:
    """End at once: the interpreter's own cleanup may wait for ranks that are gone."""
    sys.stdout.flush()
    if message:
        log.error(message)
    os._exit(code)
