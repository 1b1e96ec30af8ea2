"""What the ranks of the quick examination set in the job's store, and how they wait for each other there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_kaiyuan.cluster.rank_list import ranks_in_words
from megatron_kaiyuan.cluster.store_keys import absent, chunks, wait_for
from megatron_kaiyuan.cluster.waiting import Waiting

if TYPE_CHECKING:
    import torch

LOOK_SECONDS = 0.02


class Keys:
    """Keys of all ranks, apart from those of the training that follows.

    Args:
        store: the job's.
        world_size: number of ranks.
    """

    def __init__(self, store: torch.distributed.Store, world_size: int):
        import torch

        self.store: torch.distributed.Store = torch.distributed.PrefixStore("kaiyuan/preflight", store)
        self._world_size = world_size

    def wait(self, key: str, seconds: float, line: Waiting | None = None) -> bool:
        """Return whether a key was set in time; all ranks may wait for it at once."""
        return wait_for(self.store, [key], time.monotonic() + seconds, self._world_size, line)

    def missing(self, key: str, seconds: float) -> list[int]:
        """Wait for a key of every rank; return the ranks that did not set it in time. For rank 0."""
        deadline = time.monotonic() + seconds
        keys = [f"{key}{rank}" for rank in range(self._world_size)]
        line = Waiting(lambda: f"{ranks_in_words(self._absent(key, keys) or [0])} of {self._world_size} (preflight)")
        for some in chunks(keys):
            if not wait_for(self.store, some, deadline, line=line):
                return self._absent(key, keys)
        return []

    def of_ranks(self, key: str, ranks: Sequence[int] | None = None) -> list[str]:
        """Return what ranks have set, all of them by default."""
        ranks = range(self._world_size) if ranks is None else ranks
        keys = [f"{key}{rank}" for rank in ranks]
        return [text.decode() for some in chunks(keys) for text in self.store.multi_get(list(some))]

    def _absent(self, key: str, keys: Sequence[str]) -> list[int]:
        return [int(one[len(key) :]) for one in absent(self.store, keys)]
