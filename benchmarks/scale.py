"""What grows with the number of ranks: measured on few, counted by simulated clients, multiplied out.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

Nothing here needs more than this machine. Three ways of measuring, each in its file (`scale_ranks.py`, ...):

    ranks      forked gloo ranks that save and resume a small state: file operations (stat, lstat, open, listing),
               bytes read from shards, and bytes of Python objects that each rank receives. What one rank does is
               fitted as a + b * ranks and multiplied by the ranks of a job
    clients    the job's store replaced by one that counts calls and keys: the watchdog, the preflight. A call takes
               its client 0.2 ms; the server does one call at a time, at the cost that torch's own store has here
    alone      work of one process on the lists that a job of that size brings: plans, shares, manifests

A whole start, end to end, is `benchmarks.scale_start`.

A checkpoint of 2 billion parameters is taken as 28 GB: 4 GB of FP16 weights, 24 GB of optimizer state.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.scale_alone import (
    groups_seconds,
    manifest_operations,
    metadata_seconds,
    plan_seconds,
    pruning_operations,
    received_bytes,
    share_out_seconds,
    shares_seconds,
)
from benchmarks.scale_clients import LATENCY, Costs, absentees, look
from benchmarks.scale_ranks import job

SIZES = (1024, 8192)
WEIGHT_BYTES = 4e9


def fitted(ranks: Sequence[int], values: Sequence[float], size: int) -> float:
    """A straight line through what was measured, at `size` ranks."""
    slope, start = np.polyfit(ranks, values, 1)
    return float(max(start, 0) + max(slope, 0) * size)


class Table:
    """Rows of the printed table: a name, and a number for each size."""

    def __init__(self) -> None:
        print(f"{'':74}" + "".join(f"{size:>16,}" for size in SIZES))

    def row(self, name: str, values: Sequence[float], unit: str = "") -> None:
        print(f"{name:74}" + "".join(f"{_short(value) + unit:>16}" for value in values), flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def measure_clients(table: Table) -> None:
    costs = Costs()
    print(f"store: {costs.call * 1e6:.1f} us a call, {costs.key * 1e6:.2f} us a key, one thread")
    looks = [look(size) for size in SIZES]
    table.row("watchdog: store calls of all ranks until the verdict", [calls for calls, *_ in looks])
    table.row("watchdog: keys read and written", [keys for _, keys, *_ in looks])
    table.row("watchdog: server's time", [costs.seconds(calls, keys) for calls, keys, *_ in looks], " s")
    table.row("watchdog: time of the rank with the most calls", [seconds for _, _, seconds, _ in looks], " s")
    print(f"watchdog: it names: {looks[-1][-1]}")
    for absent in (1, 512):
        found = [absentees(size, absent) for size in SIZES]
        table.row(f"preflight: store calls, {absent} ranks missing", [calls for calls, _ in found])
        slowest = [max(costs.seconds(*one), one[0] / 3 * LATENCY) for size, one in zip(SIZES, found, strict=True)]
        table.row(f"preflight: seconds to name {absent} missing ranks", slowest, " s")


def measure_alone(table: Table) -> None:
    for name, action in (
        ("first save, each rank: who writes which weights", share_out_seconds),
        ("first save, rank 0: plans of all ranks gathered and checked", plan_seconds),
        ("resume, rank 0: metadata read, checked, each rank's found", metadata_seconds),
        ("resume, each rank: shares of the verification", shares_seconds),
        ("start, each rank: megatron-core's groups, without connections", groups_seconds),
    ):
        table.row(name, [action(size) for size in SIZES], " s")
    table.row("resume: bytes of metadata that a rank receives", [received_bytes(size) for size in SIZES])
    operations = [manifest_operations(size) for size in (64, 128)]
    table.row("file operations of one look into a manifest", [fitted((64, 128), operations, size) for size in SIZES])
    operations = [pruning_operations(size) for size in (32, 64)]
    table.row("save, rank 0: file operations of pruning, 8 steps", [fitted((32, 64), operations, one) for one in SIZES])


def measure_ranks(table: Table, counts: Sequence[int]) -> None:
    said = {ranks: job(ranks) for ranks in counts}

    def rows(name: str, value: Callable[[tuple[Any, ...]], float], unit: str = "", everyone: bool = True) -> None:
        """The last rank's value for `name`, fitted, times the ranks."""
        values = [value(one[-1 if everyone else 0]) for one in said.values()]
        each = [fitted(counts, values, size) for size in SIZES]
        table.row(name, [size * one if everyone else one for size, one in zip(SIZES, each, strict=True)], unit)

    rows("descriptors of a rank after the groups were made (gloo)", lambda one: one[1], everyone=False)
    rows("save: bytes of objects that rank 0 receives", lambda one: one[2]["objects"], everyone=False)
    rows("save: bytes of objects that all ranks receive", lambda one: one[2]["objects"])
    rows("resume: stat, lstat and listings of all ranks", lambda one: one[3]["stats"])
    rows("resume: files opened by all ranks", lambda one: one[3]["opens"])
    rows("resume: bytes of objects that all ranks receive", lambda one: one[3]["objects"])
    print(
        f"resume, measured: {'ranks':>8}{'stats a rank':>16}{'opens a rank':>16}{'shard bytes, all':>18}{'weights':>14}"
    )
    for ranks, one in said.items():
        read = sum(rank[3]["bytes"] for rank in one)
        line = f"{ranks:>8}{one[-1][3]['stats']:>16,}{one[-1][3]['opens']:>16,}{read:>18,}{one[0][4]:>14,}"
        print(f"{'':18}{line}")
    # What each added rank reads, by the bytes of the weights.
    read = [sum(rank[3]["bytes"] for rank in one) / one[0][4] for one in said.values()]
    each, all_else = np.polyfit(counts, read, 1)
    terabytes = [(max(each, 0) * size + all_else) * WEIGHT_BYTES / 1e12 for size in SIZES]
    table.row("resume: read from shards by all, with 4 GB of weights", terabytes, " TB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    given = parser.parse_args()
    from megatron_kaiyuan import platform

    platform.activate("cpu")
    from megatron_kaiyuan.train import start  # noqa: F401 - for the forks

    table = Table()
    # First: forks of a process without threads.
    measure_ranks(table, given.ranks)
    measure_clients(table)
    measure_alone(table)


if __name__ == "__main__":
    main()
