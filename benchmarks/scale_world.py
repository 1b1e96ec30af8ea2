"""One rank of a job of many that is not there, for `benchmarks.scale_start`: a store with latency, and collectives.

megatron-core's groups are torch's fake ones. What reaches the rank through torch.distributed is simulated here: rank 0
receives from each other rank what that rank would send, as bytes that it has to unpickle; another rank receives what
rank 0 has left for it in a file, in the same order. Time is this process's processor time, and by the formulas below
what network and disks would add.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.scale_clients import LATENCY, SimulatedStore
from benchmarks.scale_counting import Counted, counting

# Seconds that a message takes to the next rank; bytes a second of a slow network; seconds of a look at a shared disk.
HOP, BANDWIDTH, LOOK = 50e-6, 1e9, 1e-3


class LatentStore(SimulatedStore):
    """The job's store, as this rank sees it. Calls without time-out, as all that is waited for has been set."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def seconds(self) -> float:
        """What the calls took this rank."""
        return self.calls * LATENCY


class Prefixed:
    """In the place of torch's PrefixStore, which knows no simulated store."""

    def __init__(self, prefix: str, store: Any):
        self._prefix, self._store = prefix + "/", store

    def __getattr__(self, name: str) -> Any:
        action = getattr(self._store, name)

        def call(keys: Any, *values: Any) -> Any:
            named = self._prefix + keys if isinstance(keys, str) else [self._prefix + key for key in keys]
            return action(named, *values)

        return call


class World:
    """The job around one rank.

    Args:
        others: what another rank sends in the place of this rank's value, by value and rank.
        sampled: the other rank that is simulated too, and gets from rank 0 what it leaves in `mailbox`.

    Attributes:
        seconds: simulated ones, of network and disks.
        received: bytes that this rank got through collectives.
        parts: seconds by name, in order.
    """

    def __init__(self, rank: int, ranks: int, others: Callable[[Any, int], Any], sampled: int, mailbox: Path):
        self.rank, self.ranks, self._others, self._sampled, self._mailbox = rank, ranks, others, sampled, mailbox
        self.store = LatentStore()
        self.seconds, self.received = 0.0, 0
        self.parts: dict[str, dict[str, float]] = {}
        self._excluded, self._files = 0.0, Counted()
        self._letters: list[bytes] = pickle.loads(mailbox.read_bytes()) if rank else []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the body: processor time, and what network and disks add."""
        began, calls, received = (time.process_time() - self._excluded, self.seconds), self.store.calls, self.received
        with counting() as files:
            self._files = files
            yield
        processor = time.process_time() - self._excluded - began[0]
        network = self.seconds - began[1] + (self.store.calls - calls) * LATENCY
        self.parts[name] = {
            "processor": processor,
            "network": network,
            "disk": (files.stats + files.opens) * LOOK,
            "calls": self.store.calls - calls,
            "bytes": self.received - received,
        }

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """The body is the simulation's own work."""
        began, files = time.process_time(), self._files
        kept = files.stats, files.opens
        yield
        self._excluded += time.process_time() - began
        files.stats, files.opens = kept

    @contextmanager
    def collectives(self) -> Iterator[None]:
        """torch.distributed, for the body, as this rank of the job sees it."""
        import torch

        own = {
            "TCPStore": lambda *_, **__: self.store,
            "PrefixStore": self._prefixed,
            "all_reduce": self._all_reduce,
            "broadcast": lambda tensor, *_, **__: self._wait(tensor.nbytes),
            "barrier": lambda *_, **__: self._wait(0),
            "all_gather_object": self._all_gather_object,
            "gather_object": self._gather_object,
            "broadcast_object_list": self._broadcast_object_list,
            "scatter_object_list": self._scatter_object_list,
        }
        with ExitStack() as stack:
            for name, value in own.items():
                stack.enter_context(mock.patch.object(torch.distributed, name, value))
            yield
        if self.rank == 0:
            self._mailbox.write_bytes(pickle.dumps(self._letters))

    def _prefixed(self, prefix: str, store: Any) -> Any:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        # The fake groups ask for a store of torch's, and use none.
        return FakeStore() if prefix == "kaiyuan/groups" else Prefixed(prefix, store)

    def _wait(self, size: int) -> None:
        """A tree there and back, and the bytes that pass this rank's link."""
        self.seconds += 2 * math.ceil(math.log2(self.ranks)) * HOP + size / BANDWIDTH
        self.received += size

    def _all_reduce(self, tensor: Any, op: Any = None, group: Any = None, **_: Any) -> None:
        import torch

        self._wait(2 * tensor.nbytes)
        # Other ranks give the same number: of failures none, of bytes as many.
        if op in (None, torch.distributed.ReduceOp.SUM) and not tensor.is_floating_point():
            tensor.mul_(self.ranks if group is None else group.size())

    def _from_all(self, value: Any, ranks: int) -> list[Any]:
        with self.excluded():
            letters = [pickle.dumps(value if rank == self.rank else self._others(value, rank)) for rank in range(ranks)]
        # Each takes the room of the longest.
        self._wait(ranks * max(map(len, letters)))
        return [pickle.loads(letter) for letter in letters]

    def _all_gather_object(self, object_list: list[Any], obj: Any, group: Any = None) -> None:
        object_list[:] = self._from_all(obj, len(object_list))

    def _gather_object(
        self, obj: Any, object_gather_list: list[Any] | None = None, dst: int = 0, group: Any = None, **_: Any
    ) -> None:
        if object_gather_list is None:
            pickle.dumps(obj)
            self._wait(0)
            return
        object_gather_list[:] = self._from_all(obj, len(object_gather_list))

    def _broadcast_object_list(self, object_list: list[Any], src: int = 0, group: Any = None, **_: Any) -> None:
        if src == self.rank:
            letter = pickle.dumps(list(object_list))
            self._letters.append(letter)
        else:
            letter = self._letters.pop(0)
            object_list[:] = pickle.loads(letter)
        self._wait(len(letter))

    def _scatter_object_list(
        self, output: list[Any], given: Sequence[Any] | None = None, src: int = 0, group: Any = None, **_: Any
    ) -> None:
        if given is None:
            letter = self._letters.pop(0)
            self._wait(len(letter))
        else:
            letters = [pickle.dumps(one) for one in given]
            self._letters.append(letters[self._sampled])
            letter = letters[self.rank]
            self._wait(len(letters) * max(map(len, letters)))
        output[0] = pickle.loads(letter)

    def as_json(self) -> str:
        return json.dumps(self.parts)
