"""One rank of a job that trains, and records which process groups communicate: RECIPE FOLDER [KEY=VALUE]...

Written to FOLDER/RANK.json: the groups of more than one rank whose collectives ran, by megatron-core's description (or
torch's name) of them, and the peers of sends and receives that were not batched. Gloo groups beside a device's
library, which carry what is in host memory, are left out.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.config import load_run
from tests.helpers.processes.counting_rank import OTHERS, RINGS, replace

COLLECTIVES = (*RINGS, *OTHERS)


def main(recipe: str, folder: str, *overrides: str) -> None:
    run = load_run(Path(recipe), overrides)
    who = discover(os.environ)
    device = platform.activate(run.platform, who.local_rank)
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    groups: set[str] = set()
    peers: set[tuple[str, int]] = set()
    batched = 0

    def group_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        found = [one for one in (*arguments, *named.values()) if isinstance(one, torch.distributed.ProcessGroup)]
        return found[0] if found else torch.distributed.group.WORLD

    def communicates(group: Any) -> None:
        if group.size() > 1 and not group.group_desc.endswith("_GLOO"):
            groups.add(group.group_desc)

    def collective(original: Callable, *arguments: Any, **named: Any) -> Any:
        communicates(group_of(arguments, named))
        return original(*arguments, **named)

    def batch(original: Callable, operations: list[Any]) -> Any:
        nonlocal batched
        for operation in operations:
            communicates(operation.group or torch.distributed.group.WORLD)
        batched += 1
        try:
            return original(operations)
        finally:
            batched -= 1

    def point_to_point(original: Callable, *arguments: Any, **named: Any) -> Any:
        if not batched:
            peer = next(one for one in (*arguments, *named.values()) if isinstance(one, int))
            peers.add((group_of(arguments, named).group_desc, peer))
        return original(*arguments, **named)

    for name in COLLECTIVES:
        if hasattr(torch.distributed, name):
            replace(name, functools.partial(collective, getattr(torch.distributed, name)))
    replace("batch_isend_irecv", functools.partial(batch, torch.distributed.batch_isend_irecv))
    for name in ("isend", "irecv", "send", "recv"):
        replace(name, functools.partial(point_to_point, getattr(torch.distributed, name)))
    with process_groups(who, device, run.parallel):
        session = start(run, device, Startup())
        fit(session)
        assert session.state.progress.step == 2
    (Path(folder) / f"{who.rank}.json").write_text(json.dumps({"groups": sorted(groups), "peers": sorted(peers)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
