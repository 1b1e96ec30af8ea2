"""One rank of a job that counts what it sends in one training step: RECIPE FOLDER [KEY=VALUE]...

Every function of torch.distributed that sends is replaced, in whatever module holds it, by one that counts the bytes of
its message times what a ring sends of it. The counts go to FOLDER/RANK.json, by kind of group.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.config import load_run

# Which argument is the whole message, and how often a ring sends (n - 1) / n of it.
RINGS = {"all_reduce": ("tensor", 0, 2), "all_gather_into_tensor": ("output_tensor", 0, 1)}
RINGS["reduce_scatter_tensor"] = ("input", 1, 1)
POINT_TO_POINT = ("isend", "send")
# No step calls them; what they would send is not told here.
OTHERS = (
    *("all_gather", "all_gather_object", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier"),
    *("all_gather_coalesced", "broadcast", "broadcast_object_list", "gather", "gather_object", "reduce"),
    *("monitored_barrier", "reduce_scatter", "scatter", "scatter_object_list", "send_object_list"),
)


class Sent:
    """Bytes sent by kind of group, and calls of functions whose messages are not known, while `counting`."""

    def __init__(self) -> None:
        self.counting = False
        self.bytes: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def ring(self, kind: str, message: torch.Tensor, group: Any, rounds: int) -> None:
        ranks = torch.distributed.get_world_size(group)
        self.bytes[kind] += rounds * message.numel() * message.element_size() * (ranks - 1) // ranks


def kind_of(group: Any, name: str) -> str:
    from megatron.core import parallel_state

    data = [
        parallel_state.get_data_parallel_group(),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
        parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=True),
    ]
    if group is parallel_state.get_tensor_model_parallel_group():
        return "tensor"
    if not any(group is one for one in data):
        return "small"
    return "weights" if name == "all_gather_into_tensor" else "gradients"


def count_calls(sent: Sent) -> None:
    """Put the counting functions in place of torch's everywhere: megatron-core keeps some under names of its own."""
    for name, (argument, place, rounds) in RINGS.items():

        def ring(
            original: Callable, name: str, argument: str, place: int, rounds: int, *args: Any, **kwargs: Any
        ) -> Any:
            if sent.counting:
                message = kwargs[argument] if argument in kwargs else args[place]
                sent.ring(kind_of(kwargs.get("group"), name), message, kwargs.get("group"), rounds)
            return original(*args, **kwargs)

        replace(name, functools.partial(ring, getattr(torch.distributed, name), name, argument, place, rounds))
    for name in POINT_TO_POINT:

        def point_to_point(original: Callable, *args: Any, **kwargs: Any) -> Any:
            if sent.counting:
                message = kwargs["tensor"] if "tensor" in kwargs else args[0]
                sent.bytes["pipeline"] += message.numel() * message.element_size()
            return original(*args, **kwargs)

        replace(name, functools.partial(point_to_point, getattr(torch.distributed, name)))
    for name in OTHERS:

        def other(name: str, original: Callable, *args: Any, **kwargs: Any) -> Any:
            sent.others[name] += sent.counting
            return original(*args, **kwargs)

        original = getattr(torch.distributed, name, None)
        if original is not None:
            replace(name, functools.partial(other, name, original))


def replace(name: str, counting: Callable) -> None:
    original = getattr(torch.distributed, name)
    for module in list(sys.modules.values()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, attribute, counting)


def main(recipe: str, folder: str, *overrides: str) -> None:
    run = load_run(Path(recipe), overrides)
    who = discover(os.environ)
    device = platform.activate(run.platform, who.local_rank)
    from megatron_kaiyuan.cluster.groups import process_groups
    from megatron_kaiyuan.train.hooks.hook import Hook
    from megatron_kaiyuan.train.loop import fit
    from megatron_kaiyuan.train.start import start
    from megatron_kaiyuan.train.startup import Startup

    sent = Sent()

    class Count(Hook):
        def before_step(self, session: Any) -> None:
            sent.counting = True

        def after_step(self, session: Any, result: Any) -> None:
            sent.counting = False
            assert not result.skipped

    with process_groups(who, device, run.parallel):
        session = start(run, device, Startup())
        session.hooks = [Count()]
        count_calls(sent)
        fit(session)
    assert session.state.progress.step == 1
    (Path(folder) / f"{who.rank}.json").write_text(json.dumps({"bytes": sent.bytes, "others": sent.others}))


if __name__ == "__main__":
    main(*sys.argv[1:])
