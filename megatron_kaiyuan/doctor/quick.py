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
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.cluster.bad_nodes import node_name, write_bad_nodes
from megatron_kaiyuan.cluster.parent import end_with_parent
from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.doctor.examination import Examination, in_one_line
from megatron_kaiyuan.doctor.health import examine_health
from megatron_kaiyuan.doctor.machine import examine_disks
from megatron_kaiyuan.doctor.report import merged
from megatron_kaiyuan.doctor.run import may_be_npu
from megatron_kaiyuan.exit_codes import BAD_NODE, FAILED, FINISHED

if TYPE_CHECKING:
    import torch

    from megatron_kaiyuan.platform.base import Platform

_HERE, _HOSTS, _READY, _GO, _FOUND, _VERDICT, _READ = "here/", "hosts", "ready/", "go", "found/", "verdict", "read"
_CHUNK = 1024
# Nodes do not start at the same moment; those that are late are not ill.
_LATE_SECONDS = 300.0
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.02
# Of a device's memory, what drivers and this process take, and a job that has not ended does not.
_MEMORY_TAKEN, _MEMORY_BYTES = 0.1, 2 << 30


class Quick:
    """One rank's part."""

    def __init__(self, who: Rank, platform: str, run_dir: Path, seconds: float):
        self.who, self._platform, self._run_dir, self._seconds = who, platform, run_dir, seconds
        self.found = Examination()
        self._began = time.monotonic()
        # At work that no other rank takes part in.
        self._is_alone = True

    def run(self) -> int:
        """Return the exit code."""
        import torch

        from megatron_kaiyuan.cluster.roll_call import open_store

        if not may_be_npu(self._platform) and not torch.cuda.is_available():
            # Processors need it, and its import is no part of the examination.
            importlib.import_module("megatron.core")
        # Rank 0 may hold it for all: it lives as long as this process.
        self._held = open_store(self.who, timedelta(seconds=_LATE_SECONDS))
        self._store: torch.distributed.Store = _prefixed(self._held)
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
        self._store.set(f"{_HERE}{self.who.rank}", node_name())
        if self.who.rank == 0:
            missing = self._missing(_HERE, _LATE_SECONDS)
            if missing:
                _print(f"error: preflight: {ranks_in_words(missing)} of {self.who.world_size} did not come in time")
            hosts = [] if missing else self._all(_HERE)
            # Ranks of one node follow each other: a thousand nodes are a short list.
            self._store.set(_HOSTS, json.dumps([[host, len([*same])] for host, same in itertools.groupby(hosts)]))
        if not self._wait(_HOSTS, _LATE_SECONDS + _GRACE_SECONDS):
            return False
        self._hosts: list[str] = [host for host, count in json.loads(self._store.get(_HOSTS)) for _ in range(count)]
        return bool(self._hosts)

    def _missing(self, key: str, seconds: float) -> list[int]:
        """Wait for a key of every rank; the ranks that did not set it in time. For rank 0."""
        deadline = time.monotonic() + seconds
        keys = [f"{key}{rank}" for rank in range(self.who.world_size)]
        for first in range(0, len(keys), _CHUNK):
            while not self._store.check(keys[first : first + _CHUNK]):
                if time.monotonic() > deadline:
                    return [rank for rank, name in enumerate(keys) if not self._store.check([name])]
                time.sleep(_LOOK_SECONDS)
        return []

    def _all(self, key: str, ranks: Sequence[int] | None = None) -> list[str]:
        """What ranks have set, all of them by default."""
        ranks = range(self.who.world_size) if ranks is None else ranks
        return [text.decode() for text in self._store.multi_get([f"{key}{rank}" for rank in ranks])]

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
            _examine_device(found, device)
        if device is None and found.findings:
            found.findings[-1] = replace(found.findings[-1], of_node=True)
        if who.world_size > 1 and self._all_ready(device is not None):
            assert device is not None
            # All have looked for the file before the first collective ends.
            with shared_file(found, who, self._run_dir, self._store):
                _measure(found, self._store, who, device, self._hosts, self._left())

    def _all_ready(self, ready: bool) -> bool:
        """Whether the devices of all ranks work, as rank 0 has heard."""
        self._is_alone, self.found.doing = False, "the start of the devices of other ranks"
        self._store.set(f"{_READY}{self.who.rank}", "yes" if ready else "no")
        if self.who.rank == 0:
            late = self._missing(_READY, self._left() - _GRACE_SECONDS)
            self._store.set(_GO, "no" if late or "no" in self._all(_READY) else "yes")
        return self._wait(_GO, self._left()) and self._store.get(_GO) == b"yes"

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
        self._store = _prefixed(
            torch.distributed.TCPStore(self.who.master_address, self.who.master_port, is_master=False, timeout=limit)
        )
        _exit(self._end())

    def _end(self) -> int:
        """Give what was found to rank 0 and return its verdict."""
        self._store.set(f"{_FOUND}{self.who.rank}", json.dumps(self.found.as_json()))
        if self.who.rank == 0:
            self._store.set(_VERDICT, str(self._judge()))
        elif not self._wait(_VERDICT, self._left() + 3 * _GRACE_SECONDS):
            return FAILED
        code = int(self._store.get(_VERDICT))
        # Rank 0 may hold the store: it is the last to leave.
        if self._store.add(_READ, 1) < self.who.world_size and self.who.rank == 0:
            deadline = time.monotonic() + _GRACE_SECONDS
            while self._store.add(_READ, 0) < self.who.world_size and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        return code

    def _wait(self, key: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _judge(self) -> int:
        """Rank 0: gather what was found, print it, name the bad nodes."""
        silent = self._missing(_FOUND, self._left() + _GRACE_SECONDS)
        heard = [rank for rank in range(self.who.world_size) if rank not in set(silent)]
        found = dict(zip(heard, self._all(_FOUND, heard), strict=True))
        everybody = [
            Examination.from_json(json.loads(found[rank])) if rank in found else _silent()
            for rank in range(self.who.world_size)
        ]
        findings = merged(everybody, self.who)
        problems = [one["message"] for one in findings if one["level"] == "problem"]
        bad = bad_nodes(everybody, self._hosts)
        for message in [*problems, *([] if problems else [one["message"] for one in findings])]:
            _print(f"preflight: {message}")
        seconds = time.monotonic() - self._began
        if bad:
            why = next(message for host in bad for message in _of_node(everybody, self._hosts, host))
            write_bad_nodes(self._run_dir, bad, f"preflight: {why}")
            _print(f"error: preflight: bad nodes {','.join(bad)}: {why}")
            return BAD_NODE
        if problems:
            _print(f"error: preflight: {len(problems)} problems that no other node would mend; kaiyuan doctor has more")
            return FAILED
        nodes = len(set(self._hosts))
        _print(f"preflight: {self.who.world_size} ranks on {nodes} nodes are in order, {seconds:.1f} s")
        return FINISHED


def bad_nodes(everybody: Sequence[Examination], hosts: Sequence[str]) -> list[str]:
    """Return the nodes with a problem of their own; none where more than half of several nodes have one.

    Args:
        everybody: by rank, as `hosts`.
    """
    bad = [host for host in dict.fromkeys(hosts) if _of_node(everybody, hosts, host)]
    nodes = len(set(hosts))
    return [] if nodes > 1 and 2 * len(bad) > nodes else bad


def _of_node(everybody: Sequence[Examination], hosts: Sequence[str], host: str) -> list[str]:
    return [
        f"{finding.message} (rank {rank})"
        for rank, (one, where) in enumerate(zip(everybody, hosts, strict=True))
        if where == host
        for finding in one.findings
        if finding.of_node
    ]


def _prefixed(store: torch.distributed.Store) -> torch.distributed.Store:
    """Apart from the keys of the training that follows."""
    import torch

    return torch.distributed.PrefixStore("kaiyuan/preflight", store)


def _silent() -> Examination:
    found = Examination()
    found.problem("device: this rank did not answer in time: its device or its process hangs", of_node=True)
    return found


def _examine_device(found: Examination, device: Platform) -> None:
    """Right products, and memory that is free."""
    import torch

    from megatron_kaiyuan.doctor.trial import PRODUCT_TOLERANCE, product_error
    from megatron_kaiyuan.platform.precisions import DTYPES

    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randn(96, 256, generator=drawn), torch.randn(256, 64, generator=drawn)
    for precision in device.precisions:
        found.doing = f"a product in {precision}"
        error = product_error(one, other, DTYPES[precision], device.device)
        rounded = precision == "fp32" and device.products_round_fp32
        if not error <= PRODUCT_TOLERANCE["fp16" if rounded else precision]:
            found.problem(f"device: products in {precision} are off by {error:.1e} of their size", of_node=True)
    free, total = device.memory() or (0, 0)
    if total - free > max(_MEMORY_TAKEN * total, _MEMORY_BYTES):
        taken = f"{(total - free) / (1 << 30):.1f} GiB of its {total / (1 << 30):.0f} GiB"
        found.problem(f"device: {taken} are taken before the start, by a process of another job?", of_node=True)


def _measure(
    found: Examination, store: torch.distributed.Store, who: Rank, device: Platform, hosts: list[str], seconds: float
) -> None:
    import torch

    from megatron_kaiyuan.doctor.exchanges import examine_exchanges
    from megatron_kaiyuan.doctor.outliers import examine_outliers

    with found.part("collectives"):
        found.doing = "the start of collectives"
        torch.distributed.init_process_group(
            device.collective_backend,
            store=torch.distributed.PrefixStore("groups", store),
            rank=who.rank,
            world_size=who.world_size,
            timeout=timedelta(seconds=2 * seconds),
        )
        examine_exchanges(found, device)
        examine_outliers(found, device, hosts)
        found.doing = "the end of collectives"
        torch.distributed.barrier()


def _print(line: str) -> None:
    print(line, file=sys.stderr if line.startswith("error") else sys.stdout, flush=True)


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
    who = discover(os.environ)
    try:
        code = Quick(who, platform, run_dir, seconds).run()
    except Exception as error:
        _print(f"error: preflight: rank {who.rank} on {node_name()}: {in_one_line(error)}")
        code = FAILED
    _exit(code)


if __name__ == "__main__":
    main()
