"""Checkpoints: how long training stands still, and what checksums cost, against plain Megatron Core in the same run.

    python -m benchmarks.checkpoint --ranks 2 --rounds 7

A real training state (FP32, AdamW, distributed optimizer; about 460 MB) on data-parallel gloo ranks. A round measures
each thing once, the disk idle before each; printed are medians, with the fastest and the slowest round.

    save, Megatron Core      dist_checkpointing.save of the very same shards: no checksums, no manifest, no rename
    save, fully_reshardable  the same with Megatron Core's own reshardable optimizer state, gathered first
    save, ours, waiting      checksums, manifest, fsync of files and folders, rename
    save, ours, for stall    asynchronous, until the checkpoint is whole. Training stands still while it is planned,
                             and when an update comes before the state is copied: `stall` with --step-seconds of forward
                             and backward before the update, as on an accelerator; `stall, no step` with none
    load, Megatron Core      dist_checkpointing.load of our folder; load, ours: verify every byte, then load
    plain write, read        one process, the same number of bytes, one file, fsync
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CHUNK = 1 << 22


def recipe(run_dir: Path, layers: int) -> Any:
    from megatron_kaiyuan.config import RunConfig
    from megatron_kaiyuan.config.load import parse

    model = {"preset": "kaiyuan-tiny", "num_layers": layers, "hidden_size": 512, "ffn_hidden_size": 1536}
    model |= {"kv_channels": 64, "vocab_size": 8192}
    train = {"seq_length": 64, "micro_batch_size": 1, "global_batch_size": 8}
    phases = [{"path": "unused", "peak_lr": 1e-3}]
    content = {"run_dir": run_dir, "platform": "cpu", "model": model, "data": {"phases": phases}, "train": train}
    return parse(RunConfig, content, "benchmark")


class Bench:
    """The measurements of one rank; times are rank 0's between two barriers."""

    def __init__(self, folder: Path, layers: int, step_seconds: float):
        import torch

        from megatron_kaiyuan import platform
        from megatron_kaiyuan.cluster import discover
        from megatron_kaiyuan.cluster.groups import process_groups

        self.folder, self.torch, self.step_seconds = folder, torch, step_seconds
        run, device = recipe(folder, layers), platform.activate("cpu")
        self._groups = process_groups(discover(os.environ), device, run.parallel)
        self._groups.__enter__()
        from megatron_kaiyuan.checkpoint.save import Saver
        from megatron_kaiyuan.train.start import build_state

        self.state, self.saver = build_state(run, device), Saver()
        self.is_first = torch.distributed.get_rank() == 0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._manager_queue: Any = None

    def measure(self, name: str, action: Callable[[], Any]) -> Any:
        if self.is_first:
            os.sync()
        self.torch.distributed.barrier()
        began = time.perf_counter()
        result = action()
        self.torch.distributed.barrier()
        self.seconds[name].append(time.perf_counter() - began)
        return result

    def round(self) -> int:
        """Everything once; the bytes of a checkpoint."""
        self._save_with_megatron("save, Megatron Core", self.state.sharded)
        self._save_with_megatron("save, fully_reshardable", self._fully_reshardable)
        folder = self.folder / "step_1"
        saved = self.measure("save, ours, waiting", lambda: self._save(folder))
        self.measure("load, Megatron Core", lambda: self._load_with_megatron(folder))
        self.measure("load, ours", lambda: self._load(folder))
        self._remove(folder)
        for name, seconds in (("stall", self.step_seconds), ("stall, no step", 0.0)):
            saved = self.measure(f"save, ours, for {name}", partial(self._save_aside, folder, seconds))
            self.seconds[name].append(saved.stall_seconds)
            self._remove(folder)
        if self.is_first:
            self._plain(saved.bytes)
        self.torch.distributed.barrier()
        return saved.bytes

    def _save_with_megatron(self, name: str, content: Callable[[], dict[str, Any]]) -> None:
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.strategies import filesystem_async

        folder = self.folder / "theirs"
        if self.is_first:
            folder.mkdir()
        self.torch.distributed.barrier()
        # Its own queue, with its process, which it starts once.
        filesystem_async._results_queue = self._manager_queue
        self.measure(name, lambda: dist_checkpointing.save(content(), str(folder)))
        self._manager_queue = filesystem_async._results_queue
        self._remove(folder)

    def _fully_reshardable(self) -> dict[str, Any]:
        from megatron.core import parallel_state

        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        metadata = {"distrib_optim_sharding_type": "fully_reshardable", "dp_cp_group": group}
        network = self.state.network.sharded_state_dict(metadata=metadata)
        return {"network": network, "optimizer": self.state.optimizer.sharded_state_dict(network, metadata=metadata)}

    def _save(self, folder: Path) -> Any:
        self.saver.begin(folder, self.state.sharded(), {})
        return self.saver.wait()

    def _save_aside(self, folder: Path, step_seconds: float) -> Any:
        """As training does: it waits for the copy before its update; the votes of each step say who is writing."""
        started = time.perf_counter()
        self.saver.begin(folder, self.state.sharded(), {}, started=started)
        while True:
            time.sleep(step_seconds)
            self.saver.wait_for_copy()
            votes = self.torch.tensor([float(self.saver.busy), float(self.saver.failed)])
            self.torch.distributed.all_reduce(votes)
            if saved := self.saver.advance(int(votes[0]), int(votes[1])):
                return saved

    def _load_with_megatron(self, folder: Path) -> None:
        from megatron.core import dist_checkpointing

        self.state.restore(dist_checkpointing.load(self.state.sharded(is_loading=True), str(folder)))

    def _load(self, folder: Path) -> None:
        from megatron_kaiyuan.checkpoint.choose import verify_together
        from megatron_kaiyuan.train.resume import restore_step

        assert verify_together(folder) == []
        restore_step(self.state, folder)

    def _plain(self, size: int) -> None:
        path, chunk = self.folder / "plain", os.urandom(CHUNK)
        began = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(size // CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        self.seconds["plain write"].append(time.perf_counter() - began)
        began = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass
        self.seconds["plain read"].append(time.perf_counter() - began)
        path.unlink()

    def _remove(self, folder: Path) -> None:
        self.torch.distributed.barrier()
        if self.is_first:
            shutil.rmtree(folder)
        self.torch.distributed.barrier()


def compare_checksums() -> str:
    import xxhash

    data, rates = os.urandom(1 << 28), {}
    for name, digest in (("xxh3-128", xxhash.xxh3_128), ("sha256", hashlib.sha256)):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            digest(data).digest()
            seconds.append(time.perf_counter() - began)
        rates[name] = len(data) / statistics.median(seconds) / 1e9
    return ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in rates.items()) + ", one thread"


def print_times(seconds: dict[str, list[float]], size: int) -> None:
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        rate = "" if name.startswith("stall") else f"{size / middle[name] / 1e6:8,.0f} MB/s"
        print(f"{name:26} {middle[name]:7.3f} s  ({min(values):.3f} to {max(values):.3f}) {rate}")
    ours, theirs = "save, ours, waiting", "save, Megatron Core"
    rounds = statistics.median(one / other for one, other in zip(seconds[ours], seconds[theirs], strict=True))
    for name in ("stall", "stall, no step"):
        to_ours, to_theirs = middle[name] / middle[ours], middle[name] / middle[theirs]
        print(f"{name}: {to_ours:.3f} of our waiting save, {to_theirs:.3f} of Megatron Core's")
    print(f"save, ours against Megatron Core: {middle[ours] / middle[theirs]:.3f} (each round's: median {rounds:.3f})")
    print(f"load and verify against Megatron Core's load: {middle['load, ours'] / middle['load, Megatron Core']:.3f}")
    print(f"save against plain write: {middle[ours] / middle['plain write']:.3f}")
    print(f"load and verify against plain read: {middle['load, ours'] / middle['plain read']:.3f}")


def run_rank(folder: Path, rounds: int, layers: int, step_seconds: float) -> None:
    bench = Bench(folder, layers, step_seconds)
    bench.round()
    bench.seconds.clear()
    size = [bench.round() for _ in range(rounds)][-1]
    if bench.is_first:
        ranks = bench.torch.distributed.get_world_size()
        print(f"{size / 1e6:,.1f} MB, {ranks} ranks, {rounds} rounds after one more, {os.cpu_count()} cores")
        print_times(bench.seconds, size)
        print(f"checksums: {compare_checksums()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6, help="54 MB of state each, besides 134 MB")
    parser.add_argument("--step-seconds", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; some hundred MB for a while")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        run_rank(given.rank, given.rounds, given.layers, given.step_seconds)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.ranks)]
        options = ["--rounds", str(given.rounds), "--layers", str(given.layers)]
        options += ["--step-seconds", str(given.step_seconds), "--rank", folder]
        done = subprocess.run([*launcher, "-m", "benchmarks.checkpoint", *options], check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
