"""Forked ranks that save and resume a small state and count what they do, for `benchmarks.scale`."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale_counting import Counted, count_objects, counting


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
        count_objects(saved)
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
