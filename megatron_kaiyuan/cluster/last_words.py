"""What a hanging job leaves in its run folder before the watchdog ends it: bad nodes, and the collectives of each rank.

    run_dir/bad_nodes.json            the nodes that the verdict names
    run_dir/flight_recorder/rank_N    the last collectives that rank N queued, from torch's flight recorder

`torchfrtrace --prefix rank_ run_dir/flight_recorder` finds in the latter which rank left the common order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_kaiyuan.cluster.bad_nodes import write_bad_nodes
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.logs import log_at_once

FLIGHT_RECORDER = "flight_recorder"
# A library that hangs must not keep the job from its end.
_PATIENCE_SECONDS = 10.0


class LastWords:
    """Those of one rank.

    Args:
        recorded: gives what the flight recorder holds; None: there is none.
        report: called with the verdict, by the rank that prints it.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        recorded: Callable[[], bytes | None],
        report: Callable[[str], None] = lambda why: None,
    ):
        self._run_dir, self._rank, self._recorded, self._report = run_dir, rank, recorded, report

    def name_nodes(self, hosts: Sequence[str], why: str) -> None:
        # First: the file may wait for a file system that hangs too.
        with contextlib.suppress(Exception):
            self._report(why)
        if hosts:
            write_bad_nodes(self._run_dir, hosts, why)

    def write_flight_recorder(self) -> None:
        """Return after some seconds, whatever happens."""
        thread = threading.Thread(target=self._write, name="flight recorder", daemon=True)
        thread.start()
        thread.join(_PATIENCE_SECONDS)

    def _write(self) -> None:
        try:
            content = self._recorded()
            if content is None:
                return
            with atomic_path(self._run_dir / FLIGHT_RECORDER / f"rank_{self._rank}") as temporary:
                temporary.write_bytes(content)
        except (UserError, OSError, RuntimeError) as error:
            log_at_once(logging.WARNING, f"rank {self._rank}: its flight recorder could not be written ({error})")


def set_recorder_file(run_dir: Path) -> None:
    """Let NCCL write its own dump, of a collective that times out before the watchdog looks, to the same place."""
    if _is_recording():
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(run_dir.absolute() / FLIGHT_RECORDER / "rank_"))


def make_recorder_folder(run_dir: Path) -> None:
    """NCCL makes none."""
    if _is_recording():
        (run_dir / FLIGHT_RECORDER).mkdir(exist_ok=True)


def _is_recording() -> bool:
    return os.environ.get("TORCH_FR_BUFFER_SIZE", "0") != "0"
