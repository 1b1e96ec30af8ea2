"""What grows with the number of ranks: measured on few, counted by simulated clients, multiplied out.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

Nothing here needs more than this machine. Three ways of measuring:

    ranks      forked gloo ranks that save and resume a small state: file operations (stat, lstat, open, listing),
               bytes read from shards, and bytes of Python objects that each rank receives. What one rank does is
               fitted as a + b * ranks and multiplied by the ranks of a job
    clients    the job's store replaced by one that counts calls and keys: the watchdog, the preflight. A call takes
               its client 0.2 ms; the server does one call at a time, at the cost that torch's own store has here
    alone      work of one process on the lists that a job of that size brings: plans, shares, manifests

A checkpoint of 2 billion parameters is taken as 28 GB: 4 GB of FP16 weights, 24 GB of optimizer state.
"""

from __future__ import annotations

import argparse
import builtins
import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1024, 8192)
LATENCY = 0.2e-3
WEIGHT_BYTES = 4e9
# Object collectives, and the argument that holds what a rank received.
_RECEIVED = {
    "all_gather_object": "object_list",
    "gather_object": "object_gather_list",
    "broadcast_object_list": "object_list",
    "scatter_object_list": "scatter_object_output_list",
}
_STATS = ("stat", "lstat", "scandir", "listdir")


class Counted:
    """File operations of this process by Python, and bytes of shards that it read, in the body of `counting()`."""

    def __init__(self) -> None:
        self.stats = self.opens = self.bytes = self.objects = 0


@contextmanager
def counting() -> Iterator[Counted]:
    from torch.distributed.checkpoint import filesystem

    counted = Counted()

    def count(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            setattr(counted, name, getattr(counted, name) + 1)
            return action(*arguments, **options)

        return call

    kept = {name: getattr(os, name) for name in _STATS}
    opened = builtins.open
    for name, action in kept.items():
        setattr(os, name, count("stats", action))
    builtins.open = io.open = count("opens", opened)
    cut = filesystem.FileSystemReader._slice_file

    def count_bytes(reader: Any, file: Any, place: Any) -> Any:
        counted.bytes += place.length
        return cut(reader, file, place)

    filesystem.FileSystemReader._slice_file = count_bytes  # type: ignore[method-assign, assignment]
    try:
        yield counted
    finally:
        filesystem.FileSystemReader._slice_file = cut  # type: ignore[method-assign]
        builtins.open = io.open = opened
        for name, action in kept.items():
            setattr(os, name, action)


def _count_objects(counted: Counted) -> None:
    """Count what object collectives bring to this rank."""
    import torch

    def watch(name: str, argument: str) -> None:
        action = getattr(torch.distributed, name)
        form = inspect.signature(action)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = action(*arguments, **options)
            counted.objects += len(pickle.dumps(form.bind(*arguments, **options).arguments.get(argument)))
            return answer

        setattr(torch.distributed, name, call)

    for name, argument in _RECEIVED.items():
        watch(name, argument)


class Store:
    """A store of clients that are simulated: it counts, and answers at once."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.calls = self.keys = self.bytes = 0

    def _count(self, keys: int) -> None:
        self.calls, self.keys = self.calls + 1, self.keys + keys

    def set(self, key: str, value: str | bytes) -> None:
        self._count(1)
        self.content[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        self._count(1)
        return self.content[key]

    def check(self, keys: Sequence[str]) -> bool:
        self._count(len(keys))
        return all(key in self.content for key in keys)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        self._count(len(keys))
        return [self.content[key] for key in keys]

    def add(self, key: str, number: int) -> int:
        self._count(1)
        now = int(self.content.get(key, b"0")) + number
        self.content[key] = str(now).encode()
        return now

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        self._count(1)
        if self.content.get(key, b"").decode() == expected:
            self.content[key] = wanted.encode()
        return self.content.get(key, expected.encode())


class Costs:
    """What a call and a key cost the server of torch's store, in seconds, as measured here."""

    def __init__(self) -> None:
        import torch

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        keys = [f"kaiyuan/alive/{number}" for number in range(8192)]
        for key in keys:
            store.set(key, "x" * 300)
        # The least of many: what others do on this machine is not the store's cost.
        clock = partial(timeit.repeat, number=1, repeat=30)
        self.call = min(clock(lambda: [store.check(keys[:1]) for _ in range(200)])) / 200
        self.key = min(clock(lambda: store.multi_get(keys[:1024]))) / 1024

    def seconds(self, calls: int, keys: int) -> float:
        """The server's time for calls and keys of all clients."""
        return calls * self.call + keys * self.key


def _seconds(action: Callable[[], Any]) -> float:
    """Processor time, which others on this machine do not change much."""
    began = time.process_time()
    action()
    return time.process_time() - began


# Clients: the watchdog and the roll call.


def look(ranks: int) -> tuple[int, int, float, str]:
    """A job of `ranks` that hangs in its last rank, all of them searching for it, a step of each in turn.

    Returns:
        Calls and keys of all ranks until the last one has the verdict, the seconds that the calls of the rank that made
        the most took it, and the verdict.
    """
    from megatron_kaiyuan.cluster.search import Search, report
    from megatron_kaiyuan.cluster.verdict import Alive, Verdict

    store = Store()
    searches = [Search(store, rank, ranks, 7, "node0:29500") for rank in range(ranks)]  # type: ignore[arg-type]
    own = [0] * ranks
    verdicts: dict[int, Verdict] = {}
    for period in range(20):
        counted = store.calls, store.keys
        for rank in range(ranks):
            waiting = rank != ranks - 1
            report(store, rank, Alive(period, 7, waiting, "file.py:7 (read)", f"node{rank // 8}", rank, "1"))  # type: ignore[arg-type]
        # What every rank reports once a period, hanging or not, is no part of the search.
        store.calls, store.keys = counted
        for rank, search in enumerate(searches):
            before = store.calls
            if rank not in verdicts and (verdict := search.step()) is not None:
                verdicts[rank] = verdict
            own[rank] += store.calls - before
    (message,) = {one.message for one in verdicts.values()}
    assert len(verdicts) == ranks
    return store.calls, store.keys, max(own) * LATENCY, message


def absentees(ranks: int, absent: int) -> tuple[int, int]:
    """Calls and keys of all ranks that look for those which have not come."""
    from megatron_kaiyuan.cluster import roll_call

    store = Store()
    for rank in range(ranks - absent):
        store.content[f"kaiyuan/here/{rank}"] = b"{}"
    assert roll_call._absent(store, ranks) == list(range(ranks - absent, ranks))  # type: ignore[arg-type]
    # The others wait for a verdict.
    searchers = roll_call._MOST_SEARCHERS
    return searchers * store.calls, searchers * store.keys


# Alone: what one process does with the lists of a large job.


def shares_seconds(ranks: int) -> float:
    from megatron_kaiyuan.checkpoint.verify import shares

    files = {f"__{rank}_0.distcp": {"bytes": 3_000_000 + rank % 7} for rank in range(ranks)}
    return _seconds(lambda: shares(files, ranks))


def share_out_seconds(ranks: int) -> float:
    """Who writes which weights: 28 layers of 11 weights, held by `ranks` data-parallel ranks."""
    from megatron_kaiyuan.checkpoint.verify import spread

    sizes = [1 + number % 13 for number in range(28 * 11)]
    return _seconds(lambda: spread(sizes, ranks))


# A network of 2 billion parameters: weights of a layer, stacked, and what stands before and after them.
_WEIGHTS = {
    "qkv": (28, 3072, 2048),
    "proj": (28, 2048, 2048),
    "fc1": (28, 12288, 2048),
    "fc2": (28, 2048, 6144),
    "embedding": (151936, 2048),
    "head": (151936, 2048),
}


def _plans(ranks: int) -> list[Any]:
    """The plans of a save: optimizer state of 2 billion parameters, cut over `ranks` ranks."""
    import torch
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    from megatron_kaiyuan.optim.sharded import rectangles

    bounds = np.cumsum([0, *(np.prod(shape) for shape in _WEIGHTS.values())]).tolist()
    cuts = np.linspace(0, bounds[-1], ranks + 1).astype(int).tolist()
    plans = []
    for begin, end in itertools.pairwise(cuts):
        items = []
        for (name, shape), start in zip(_WEIGHTS.items(), bounds, strict=False):
            first, last = max(begin - start, 0), min(end - start, int(np.prod(shape)))
            for place, size in rectangles(shape, first, last):
                chunk = ChunkStorageMetadata(torch.Size(place), torch.Size(size))
                data = TensorWriteData(chunk, TensorProperties(torch.float32), torch.Size(shape))
                for state in ("param", "exp_avg", "exp_avg_sq"):
                    index = MetadataIndex(f"optimizer.state.{state}.{name}", chunk.offsets)
                    items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        plans.append(SavePlan(items))
    return plans


def plan_seconds(ranks: int) -> float:
    """Rank 0's work on the plans of all: unpickled, made into metadata, checked."""
    from torch.distributed.checkpoint import default_planner

    from megatron_kaiyuan.checkpoint.coverage import require_covered

    pickled = [pickle.dumps(plan) for plan in _plans(ranks)]

    def work() -> None:
        plans = [pickle.loads(one) for one in pickled]
        require_covered(default_planner.create_default_global_save_plan(plans)[1])

    return _seconds(work)


def _metadata(ranks: int) -> tuple[Any, dict[str, int]]:
    """The metadata that such plans become, and the sizes of the files."""
    from torch.distributed.checkpoint import default_planner
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    plans, metadata = default_planner.create_default_global_save_plan(_plans(ranks))
    metadata.storage_data, sizes = {}, {}
    for rank, plan in enumerate(plans):
        place = 0
        for item in plan.items:
            length = 4 * int(np.prod(item.tensor_data.chunk.sizes))  # type: ignore[union-attr]
            metadata.storage_data[item.index] = _StorageInfo(f"__{rank}_0.distcp", place, length)
            place += length
        sizes[f"__{rank}_0.distcp"] = place
    return metadata, sizes


def metadata_seconds(ranks: int) -> float:
    """Rank 0's work on the metadata of a checkpoint: unpickled, checked, pickled for the others."""
    from megatron_kaiyuan.checkpoint.metadata_form import wrong_metadata
    from megatron_kaiyuan.checkpoint.plain import _MetadataUnpickler

    metadata, sizes = _metadata(ranks)
    content = pickle.dumps(metadata)

    def work() -> None:
        read = _MetadataUnpickler(io.BytesIO(content)).load()
        assert wrong_metadata(read, sizes) is None
        pickle.dumps(read)

    return _seconds(work)


def received_seconds(ranks: int) -> float:
    """Each rank's work on the metadata that it receives."""
    content = pickle.dumps(_metadata(ranks)[0])
    return _seconds(lambda: pickle.loads(content))


def manifest_operations(files: int) -> int:
    from megatron_kaiyuan.checkpoint.verify import read_manifest

    with tempfile.TemporaryDirectory() as scratch:
        folder = _fake_run(Path(scratch), 1, files)[0]
        with counting() as counted:
            read_manifest(folder)
        return counted.stats


def pruning_operations(files: int, steps: int = 8) -> int:
    """File operations of rank 0 after a save that removes nothing, of a run with so many checkpoints."""
    from megatron_kaiyuan.checkpoint.retention import Retention, removable

    with tempfile.TemporaryDirectory() as scratch:
        _fake_run(Path(scratch), steps, files)
        with counting() as counted:
            assert removable(Path(scratch), Retention(keep_last=steps - 1)) == [1]
        return counted.stats + counted.opens


def _fake_run(run_dir: Path, steps: int, files: int) -> list[Path]:
    from megatron_kaiyuan.checkpoint import layout
    from megatron_kaiyuan.files import DIGEST_PREFIX

    folders = []
    for step in range(1, steps + 1):
        folder = layout.step_folder(run_dir, step)
        folder.mkdir(parents=True)
        names = [".metadata", "common.pt", "metadata.json", *(f"__{rank}_0.distcp" for rank in range(files))]
        for name in names:
            (folder / name).write_bytes(b"x")
        entry = {"bytes": 1, "checksum": f"{DIGEST_PREFIX}{0:032x}"}
        layout.write_manifest(folder, dict.fromkeys(names, entry), step=step, tokens=step, scheduled=True)
        folders.append(folder)
    return folders


def groups_seconds(ranks: int) -> float:
    """megatron-core's groups of one rank among `ranks`, with tensor parallel size 2, without connections."""
    from megatron_kaiyuan.cluster.pretended import pretended_groups
    from megatron_kaiyuan.config import ParallelConfig

    def make() -> None:
        with pretended_groups(0, ranks, ParallelConfig(tensor_model_parallel_size=2)):
            pass

    return _seconds(make)


# Ranks: forks that save and resume.


def _rank(rank: int, ranks: int, port: int, folder: Path, answers: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    import torch

    from benchmarks.checkpoint import recipe
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.checkpoint.choose import choose_step
    from megatron_kaiyuan.checkpoint.layout import step_folder
    from megatron_kaiyuan.checkpoint.load import load_common
    from megatron_kaiyuan.checkpoint.save import Saver
    from megatron_kaiyuan.cluster import discover
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.train.resume import restore_step
    from megatron_kaiyuan.train.start import build_state

    run, device = recipe(folder, 2), platform.activate("cpu")
    with process_groups(discover(os.environ), device, run.parallel):
        descriptors = len(os.listdir("/proc/self/fd"))
        state, saver = build_state(run, device), Saver()
        identity = {"config": run.model_dump(mode="json"), "phases": []}
        saved = Counted()
        _count_objects(saved)
        with counting() as files:
            saver.begin(step_folder(folder, 1), {**state.sharded(), "run": identity}, {"step": 1, "tokens": 0})
            saver.wait()
        saved.stats, saved.opens = files.stats, files.opens
        resumed = saved.objects
        torch.distributed.barrier()
        with counting() as loaded:
            began = time.perf_counter()
            choice = choose_step(folder)
            assert choice.step == 1
            load_common(step_folder(folder, 1))
            restore_step(state, step_folder(folder, 1))
            seconds = time.perf_counter() - began
        loaded.objects = saved.objects - resumed
        saved.objects = resumed
        weights = sum(tensor.nbytes for tensor in state.network.chunks[0].parameters())
        answers.put((rank, descriptors, vars(saved), vars(loaded), weights, seconds))
        torch.distributed.barrier()
    os._exit(0)


def job(ranks: int) -> list[tuple[Any, ...]]:
    """What every rank of a small job counted, by rank."""
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answers = fork.Queue()
        processes = [
            fork.Process(target=_rank, args=(rank, ranks, port, Path(folder), answers)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        said = sorted((answers.get(timeout=90) for _ in processes), key=lambda one: one[0])
        for process in processes:
            process.join()
        return said


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
        ("resume, rank 0: metadata read, checked, and sent", metadata_seconds),
        ("resume, each rank: metadata received", received_seconds),
        ("resume, each rank: shares of the verification", shares_seconds),
        ("start, each rank: megatron-core's groups, without connections", groups_seconds),
    ):
        table.row(name, [action(size) for size in SIZES], " s")
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
