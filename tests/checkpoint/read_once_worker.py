"""One rank that saves a small state, spoils it, restores it, and writes what that took: `FOLDER`, where it all goes.

RANK.json   same: every tensor is bit for bit what was saved; shards: bytes that were read of shards; files: looks at
            files and listings; objects: of object collectives, what this rank received; groups: its descriptors
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.load import parse

RECEIVED = {
    "all_gather_object": "object_list",
    "gather_object": "object_gather_list",
    "broadcast_object_list": "object_list",
    "scatter_object_list": "scatter_object_output_list",
}
counted = {"shards": 0, "files": 0, "objects": 0}


def count_everything() -> None:
    cut = FileSystemReader._slice_file

    def slice_file(reader: Any, file: Any, place: Any) -> Any:
        counted["shards"] += place.length
        return cut(reader, file, place)

    FileSystemReader._slice_file = slice_file  # type: ignore[assignment]

    def watch(owner: Any, name: str, what: str, size: Any) -> None:
        action = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = action(*arguments, **options)
            counted[what] += size(arguments, options)
            return answer

        setattr(owner, name, call)

    for name in ("stat", "lstat", "scandir", "listdir"):
        watch(os, name, "files", lambda arguments, options: 1)
    for name, argument in RECEIVED.items():
        form = inspect.signature(getattr(torch.distributed, name))

        def size(arguments: Any, options: Any, form: Any = form, argument: str = argument) -> int:
            return len(pickle.dumps(form.bind(*arguments, **options).arguments.get(argument)))

        watch(torch.distributed, name, "objects", size)


def optimizer_states(state: Any) -> list[dict[str, Any]]:
    return [one for part in state.optimizer.chained_optimizers for one in part.optimizer.state.values()]


def tensors(state: Any) -> list[torch.Tensor]:
    held = [value for one in optimizer_states(state) for value in one.values() if torch.is_tensor(value)]
    mains = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    return [*(one.detach() for one in state.network.chunks[0].parameters()), *(one.detach() for one in mains), *held]


def digest(state: Any) -> str:
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in tensors(state))).hexdigest()


def main(folder: Path) -> None:
    model = {"preset": "kaiyuan-tiny", "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}
    content = {
        "run_dir": folder,
        "platform": "cpu",
        "model": model | {"vocab_size": 256},
        "data": {"phases": [{"path": "unused", "peak_lr": 1e-3}]},
        "train": {"seq_length": 64, "micro_batch_size": 1, "global_batch_size": 8},
    }
    run, who, device = parse(RunConfig, content, "test"), discover(os.environ), platform.activate("cpu")
    from megatron_kaiyuan.checkpoint.choose import verify_together
    from megatron_kaiyuan.checkpoint.layout import step_folder
    from megatron_kaiyuan.checkpoint.save import save_folder
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.train.resume import restore_step
    from megatron_kaiyuan.train.start import build_state

    with process_groups(who, device, run.parallel):
        descriptors = len(os.listdir("/proc/self/fd"))
        state = build_state(run, device)
        state.sharded(is_loading=True)
        torch.manual_seed(who.rank)
        for one in optimizer_states(state):
            for value in one.values():
                if torch.is_tensor(value) and value.is_floating_point():
                    value.uniform_()
        saved, step = digest(state), step_folder(folder, 1)
        save_folder(step, {**state.sharded(), "run": {"config": run.model_dump(mode="json"), "phases": []}}, step=1)
        random = torch.get_rng_state()
        torch.rand(3)
        for tensor in tensors(state):
            tensor.fill_(7)
        count_everything()
        assert digest(state) != saved and verify_together(step) == []
        restore_step(state, step)
        same = digest(state) == saved and torch.equal(random, torch.get_rng_state())
        result = {"same": same, "groups": descriptors, **counted}
        (folder / f"{who.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
