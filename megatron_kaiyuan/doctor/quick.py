"""The quick examination of all ranks before training, and which nodes are bad: `kaiyuan train --preflight`.

    python -m megatron_kaiyuan.doctor.quick PLATFORM RUN_DIR SECONDS

A process of its own beside each rank that is about to train, so that a device that hangs or ends its process costs no
more than the time limit. The ranks meet in the job's store, before they touch a device; rank 0 gives one verdict, which
is the exit code of all: 0, BAD_NODE (RUN_DIR/bad_nodes.json names the nodes) or FAILED.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megatron_kaiyuan import logs
from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.cluster.bad_nodes import node_name
from megatron_kaiyuan.cluster.parent import end_with_parent
from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.cluster.waiting import Waiting
from megatron_kaiyuan.doctor.examination import Examination, in_one_line
from megatron_kaiyuan.doctor.health import examine_health
from megatron_kaiyuan.doctor.machine import examine_disks
from megatron_kaiyuan.doctor.quick_checks import examine_collectives, examine_device
from megatron_kaiyuan.doctor.quick_keys import LOOK_SECONDS, Keys
from megatron_kaiyuan.doctor.quick_verdict import judge, silent
from megatron_kaiyuan.doctor.run import may_be_npu
from megatron_kaiyuan.exit_codes import FAILED

if TYPE_CHECKING:
    from megatron_kaiyuan.platform.base import Platform

log = logging.getLogger("megatron_kaiyuan.doctor.quick")

_HERE, _HOSTS, _READY, _GO, _FOUND, _VERDICT, _READ = "here/", "hosts", "ready/", "go", "found/", "verdict", "read"
# Nodes do not start at the same moment; those that are late are not ill.
_LATE_SECONDS = 300.0
_GRACE_SECONDS = 5.0


class Quick:
    """The examination of one rank."""

    def __init__(self, who: Rank, platform: str, run_dir: Path, seconds: float):
        self.who, self._platform, self._run_dir, self._seconds = who, platform, run_dir, seconds
        self.found = Examination()
        self._began = time.monotonic()
        # At work that no other rank takes part in.
        self._is_alone = True

    def run(self) -> int:
        """Return the exit code."""
        import torch

        from megatron_kaiyuan.cluster.start_check import open_store

        if not may_be_npu(self._platform) and not torch.cuda.is_available():
            # Processors need it, and its import is not part of the examination.
            importlib.import_module("megatron.core")
        # Rank 0 may hold it for all: it lives as long as this process.
        self._held = open_store(self.who, timedelta(seconds=_LATE_SECONDS))
        self._keys = Keys(self._held, self.who.world_size)
        if not self._meet():
            return FAILED
        self._began = time.monotonic()
        timer = threading.Timer(self._seconds, self._expire)
        timer.daemon = True
        timer.start()
        self._examine()
        timer.cancel()
        return self._end()

    def _meet(self) -> bool:
        """Wait until all ranks have come and take from rank 0 the node of each; False: some never came."""
        self._keys.store.set(f"{_HERE}{self.who.rank}", node_name())
        if self.who.rank == 0:
            missing = self._keys.missing(_HERE, _LATE_SECONDS)
            if missing:
                log.error(f"preflight: {ranks_in_words(missing)} of {self.who.world_size} did not come in time")
            hosts = [] if missing else self._keys.of_ranks(_HERE)
            # Ranks of one node follow each other: a thousand nodes are a short list.
            self._keys.store.set(_HOSTS, json.dumps([[host, len([*same])] for host, same in itertools.groupby(hosts)]))
        # One rank prints: rank 0 names those for whom it waits.
        line = Waiting("rank 0, which waits for all ranks (preflight)") if self.who.rank == 1 else None
        if not self._keys.wait(_HOSTS, _LATE_SECONDS + _GRACE_SECONDS, line):
            return False
        nodes = json.loads(self._keys.store.get(_HOSTS))
        self._hosts: list[str] = [host for host, count in nodes for _ in range(count)]
        return bool(self._hosts)

    def _examine(self) -> None:
        from megatron_kaiyuan.doctor.shared_folder import shared_file
        from megatron_kaiyuan.platform.choose import platform_named

        found, who = self.found, self.who
        device: Platform | None = None
        with found.part("health"):
            if who.local_rank == 0:
                examine_health(found)
        with found.part("disk"):
            examine_disks(found, self._run_dir, has_devices=self._platform != "cpu")
        with found.part("device"):
            # Not `platform.activate`: importing Megatron Core takes time and says nothing of a node.
            device = platform_named(self._platform, mindspeed=False)
            device.activate(who.local_rank, who.local_world_size or who.world_size)
            examine_device(found, device)
        if device is None and found.findings:
            found.findings[-1] = replace(found.findings[-1], of_node=True)
        if who.world_size > 1 and self._all_ready(device is not None):
            assert device is not None
            # All have looked for the file before the first collective ends.
            with shared_file(found, who, self._run_dir, self._keys.store):
                examine_collectives(found, self._keys.store, who, device, self._hosts, self._left())

    def _all_ready(self, ready: bool) -> bool:
        """Whether the devices of all ranks work, as rank 0 has heard."""
        self._is_alone, self.found.doing = False, "the start of the devices of other ranks"
        self._keys.store.set(f"{_READY}{self.who.rank}", "yes" if ready else "no")
        if self.who.rank == 0:
            late = self._keys.missing(_READY, self._left() - _GRACE_SECONDS)
            self._keys.store.set(_GO, "no" if late or "no" in self._keys.of_ranks(_READY) else "yes")
        return self._keys.wait(_GO, self._left()) and self._keys.store.get(_GO) == b"yes"

    def _left(self) -> float:
        return max(self._seconds - (time.monotonic() - self._began), 0.1)

    def _expire(self) -> None:
        """From the timer's thread: the main thread may wait in a device, or for another rank, for ever."""
        import torch

        self.found.problem(
            f"preflight: {self.found.doing} did not end within {self._seconds:g} s", of_node=self._is_alone
        )
        # A connection of its own: the main thread may be waiting on the other one.
        limit = timedelta(seconds=_LATE_SECONDS)
        own = torch.distributed.TCPStore(self.who.master_address, self.who.master_port, is_master=False, timeout=limit)
        self._keys = Keys(own, self.who.world_size)
        _exit(self._end())

    def _end(self) -> int:
        """Give what was found to rank 0 and return its verdict."""
        self._keys.store.set(f"{_FOUND}{self.who.rank}", json.dumps(self.found.as_json()))
        if self.who.rank == 0:
            verdict = judge(self._everybody(), self._hosts, self.who, self._run_dir, self._began)
            self._keys.store.set(_VERDICT, str(verdict))
        elif not self._keys.wait(_VERDICT, self._left() + 3 * _GRACE_SECONDS):
            return FAILED
        code = int(self._keys.store.get(_VERDICT))
        # Rank 0 may hold the store: it is the last to leave.
        if self._keys.store.add(_READ, 1) < self.who.world_size and self.who.rank == 0:
            deadline = time.monotonic() + _GRACE_SECONDS
            while self._keys.store.add(_READ, 0) < self.who.world_size and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
        return code

    def _everybody(self) -> list[Examination]:
        """What every rank found, by rank. For rank 0."""
        late = self._keys.missing(_FOUND, self._left() + _GRACE_SECONDS)
        heard = [rank for rank in range(self.who.world_size) if rank not in set(late)]
        found = dict(zip(heard, self._keys.of_ranks(_FOUND, heard), strict=True))
        return [
            Examination.from_json(json.loads(found[rank])) if rank in found else silent()
            for rank in range(self.who.world_size)
        ]


def _exit(code: int) -> NoReturn:
    """End at once: the interpreter's own cleanup may wait for ranks or devices."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    end_with_parent(signal.SIGKILL)
    # What libraries have to say of themselves, training prints or leaves out.
    warnings.simplefilter("ignore")
    platform, run_dir, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    logs.set_up()
    who = discover(os.environ)
    logs.set_rank(who.rank)
    try:
        code = Quick(who, platform, run_dir, seconds).run()
    except Exception as error:
        log.error(f"preflight: rank {who.rank} on {node_name()}: {in_one_line(error)}")
        code = FAILED
    _exit(code)


if __name__ == "__main__":
    main()
