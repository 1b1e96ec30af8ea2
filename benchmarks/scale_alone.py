"""What one process does with the lists of a large job, for `benchmarks.scale`: plans, metadata, manifests, groups."""

from __future__ import annotations

import io
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_counting import counting

# A network of 2 billion parameters: weights of a layer, stacked, and what stands before and after them.
_WEIGHTS = {
    "qkv": (28, 3072, 2048),
    "proj": (28, 2048, 2048),
    "fc1": (28, 12288, 2048),
    "fc2": (28, 2048, 6144),
    "embedding": (151936, 2048),
    "head": (151936, 2048),
}


def shares_seconds(ranks: int) -> float:
    from megatron_kaiyuan.checkpoint.verify import shares

    files = {f"__{rank}_0.distcp": {"bytes": 3_000_000 + rank % 7} for rank in range(ranks)}
    return _seconds(lambda: shares(files, ranks))


def share_out_seconds(ranks: int) -> float:
    """Who writes which weights: 28 layers of 11 weights, held by `ranks` data-parallel ranks."""
    from megatron_kaiyuan.checkpoint.verify import spread

    sizes = [1 + number % 13 for number in range(28 * 11)]
    return _seconds(lambda: spread(sizes, ranks))


def rectangles_of(
    weights: dict[str, tuple[int, ...]], rank: int, ranks: int
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yield one rank's share of the optimizer state: weight, its shape, offsets and sizes of a rectangle of it."""
    from megatron_kaiyuan.optim.sharded import rectangles

    total = sum(math.prod(shape) for shape in weights.values())
    begin, end = total * rank // ranks, total * (rank + 1) // ranks
    start = 0
    for name, shape in weights.items():
        size = math.prod(shape)
        for place, extent in rectangles(shape, max(begin - start, 0), min(end - start, size)):
            yield name, shape, place, extent
        start += size


def _plans(ranks: int) -> list[Any]:
    """The plans of a save: optimizer state of 2 billion parameters, cut over `ranks` ranks."""
    import torch
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    plans = []
    for rank in range(ranks):
        items = []
        for name, shape, place, size in rectangles_of(_WEIGHTS, rank, ranks):
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
    """Rank 0's work on the metadata of a checkpoint: unpickled, checked, each rank's entries found and pickled."""
    from megatron_kaiyuan.checkpoint.metadata_form import wrong_metadata
    from megatron_kaiyuan.checkpoint.own_entries import Entries
    from megatron_kaiyuan.checkpoint.plain import _MetadataUnpickler
    from megatron_kaiyuan.cluster.many_objects import collector_paused

    metadata, sizes = _metadata(ranks)
    content = pickle.dumps(metadata)
    asked = [_regions(rank, ranks) for rank in range(ranks)]

    @collector_paused()
    def work() -> None:
        read = _MetadataUnpickler(io.BytesIO(content)).load()
        assert wrong_metadata(read, sizes) is None
        entries = Entries(read)
        for regions in asked:
            pickle.dumps(entries.of(regions))

    return _seconds(work)


def received_bytes(ranks: int) -> int:
    """Bytes of the metadata that one rank receives."""
    from megatron_kaiyuan.checkpoint.own_entries import Entries

    middle = ranks // 2
    return len(pickle.dumps(Entries(_metadata(ranks)[0]).of(_regions(middle, ranks))))


def _regions(rank: int, ranks: int) -> list[Any]:
    states = ("param", "exp_avg", "exp_avg_sq")
    return [
        (f"optimizer.state.{state}.{name}", place, size)
        for name, _, place, size in rectangles_of(_WEIGHTS, rank, ranks)
        for state in states
    ]


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


def _seconds(action: Callable[[], Any]) -> float:
    """Processor time, which others on this machine do not change much."""
    began = time.process_time()
    action()
    return time.process_time() - began
