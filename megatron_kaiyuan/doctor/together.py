"""The part of the examination that needs all ranks, and how their findings come together at rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.cluster.start_check import open_store, start_check
from megatron_kaiyuan.cluster.store_keys import read_present
from megatron_kaiyuan.cluster.waiting import Waiting
from megatron_kaiyuan.doctor import report
from megatron_kaiyuan.doctor.clocks import examine_clocks
from megatron_kaiyuan.doctor.collectives import examine_collectives
from megatron_kaiyuan.doctor.examination import Examination, in_one_line
from megatron_kaiyuan.doctor.exchanges import examine_exchanges
from megatron_kaiyuan.doctor.shared_folder import shared_file
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.versions import source_fingerprint, versions

_READY, _FOUND = "kaiyuan/doctor/ready/", "kaiyuan/doctor/found/"
# For findings that are on their way when rank 0 is ready.
_GRACE_SECONDS = 30.0
_LOOK_SECONDS = 0.05
# The launcher stops all ranks when the first one ends.
_SPEAKER_SECONDS = 2.0


def examine_together(
    found: Examination, who: Rank, device: Platform | None, run_dir: Path | None, timeout: float, as_json: bool
) -> NoReturn:
    """Meet the other ranks, measure, report, and end this process with its exit code.

    Args:
        device: None where this rank's platform does not work, which the others hear of.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = open_store(who, limit)
        hosts, all_ready = _meet(found, store, who, device, limit)
    except Exception as error:
        found.problem(f"launcher: {in_one_line(error)}")
        _end_without_others(found, who, as_json, speaks=getattr(error, "speaker", True))
    if all_ready and device is not None:
        with _deadline(found, who, timeout, as_json):
            _measure(found, store, who, device, hosts, 2 * limit)
    with shared_file(found, who, run_dir, store) if run_dir else contextlib.nullcontext():
        code = _tell(found, store, who, timeout, as_json)
    _end(code)


def _meet(
    found: Examination, store: torch.distributed.Store, who: Rank, device: Platform | None, limit: timedelta
) -> tuple[list[str], bool]:
    """Wait for all ranks and compare what they would run; the host of each, and whether all can continue."""
    facts = {"the code of megatron_kaiyuan": source_fingerprint(), **versions()}
    facts["platform"] = device.name if device else "unusable"
    store.set(f"{_READY}{who.rank}", json.dumps({"host": socket.gethostname(), "ready": device is not None}))
    try:
        start_check(store, who, facts, limit)
    except UserError as error:
        if who.rank == 0:
            found.problem(f"launcher: {error}")
    ranks = [json.loads(text) for text in store.multi_get([f"{_READY}{rank}" for rank in range(who.world_size)])]
    return [rank["host"] for rank in ranks], all(rank["ready"] for rank in ranks)


def _measure(
    found: Examination, store: torch.distributed.Store, who: Rank, device: Platform, hosts: list[str], limit: timedelta
) -> None:
    with found.part("collectives"):
        device.limit_collectives(limit.total_seconds() / 2, limit.total_seconds())
        torch.distributed.init_process_group(
            device.collective_backend,
            store=torch.distributed.PrefixStore("kaiyuan/groups", store),
            rank=who.rank,
            world_size=who.world_size,
            timeout=limit,
        )
        examine_exchanges(found, device)
        examine_collectives(found, device)
        found.doing = "the comparison of clocks"
        examine_clocks(found, device, hosts)
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _deadline(found: Examination, who: Rank, seconds: float, as_json: bool) -> Iterator[None]:
    """End the process with what is known so far when the body takes longer: a collective cannot be called off."""

    def expire() -> None:
        found.problem(
            f"collectives: {found.doing} did not end within {seconds:g} seconds; try fewer hosts to find the one that "
            "does not answer, and see that no firewall stands between them"
        )
        _end(_tell(found, None, who, seconds, as_json))

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(found: Examination, store: torch.distributed.Store | None, who: Rank, seconds: float, as_json: bool) -> int:
    """Rank 0 prints everybody's findings; this rank's exit code.

    Args:
        store: None for a connection of its own, while the main thread may be using the other one.
    """
    try:
        if store is None:
            limit = timedelta(seconds=_GRACE_SECONDS)
            store = torch.distributed.TCPStore(who.master_address, who.master_port, is_master=False, timeout=limit)
        everybody = _gather(found, store, who, seconds)
    except torch.distributed.DistError as error:
        found.problem(f"launcher: the job's store is gone ({in_one_line(error)}), and the other ranks with it")
        return report.print_report([found], who, as_json)
    return report.print_report(everybody, who, as_json) if who.rank == 0 else 0


def _gather(found: Examination, store: torch.distributed.Store, who: Rank, seconds: float) -> list[Examination]:
    """Everybody's findings, on rank 0; ranks that fall silent are a finding of their own."""
    store.set(f"{_FOUND}{who.rank}", json.dumps(found.as_json()))
    if who.rank != 0:
        return []
    everybody = {0: found}
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    line = Waiting(lambda: f"what {ranks_in_words(sorted(waiting))} of {who.world_size} found")
    while (waiting := set(range(who.world_size)) - set(everybody)) and time.monotonic() < deadline:
        arrived = read_present(store, [f"{_FOUND}{rank}" for rank in sorted(waiting)])
        for key, text in arrived.items():
            everybody[int(key[len(_FOUND) :])] = Examination.from_json(json.loads(text))
        if not arrived:
            line.look()
            time.sleep(_LOOK_SECONDS)
    if waiting:
        found.problem(f"launcher: {ranks_in_words(sorted(waiting))} did not answer any more; look at their logs")
    return [everybody.get(rank, Examination()) for rank in range(who.world_size)]


def _end_without_others(found: Examination, who: Rank, as_json: bool, speaks: bool) -> NoReturn:
    """Print this rank's own findings; of those that all know, one rank prints for all, and the others wait for it."""
    if not speaks:
        time.sleep(_SPEAKER_SECONDS)
        _end(1)
    _end(report.print_report([found], who, as_json))


def _end(code: int) -> NoReturn:
    """End at once: the interpreter's own cleanup may wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
