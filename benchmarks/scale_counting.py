"""Counters for `benchmarks.scale`: file operations of this process, and bytes of the objects that it receives."""

from __future__ import annotations

import builtins
import inspect
import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    """Count in the body of `with`."""
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


def count_objects(counted: Counted) -> None:
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
