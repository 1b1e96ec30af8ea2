"""What the ranks of the quick examination set in the job's store, and how they wait for each other there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHUNK = 1024
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

    def wait(self, key: str, seconds: float) -> bool:
        """Return whether a key was set in time."""
        deadline = time.monotonic() + seconds
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def missing(self, key: str, seconds: float) -> list[int]:
        """Wait for a key of every rank; return the ranks that did not set it in time. For rank 0."""
        deadline = time.monotonic() + seconds
        keys = [f"{key}{rank}" for rank in range(self._world_size)]
        for first in range(0, len(keys), _CHUNK):
            while not self.store.check(keys[first : first + _CHUNK]):
                if time.monotonic() > deadline:
                    return [rank for rank, name in enumerate(keys) if not self.store.check([name])]
                time.sleep(LOOK_SECONDS)
        return []

    def of_ranks(self, key: str, ranks: Sequence[int] | None = None) -> list[str]:
        """Return what ranks have set, all of them by default."""
        ranks = range(self._world_size) if ranks is None else ranks
        return [text.decode() for text in self.store.multi_get([f"{key}{rank}" for rank in ranks])]
