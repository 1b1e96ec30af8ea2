"""Many keys of the job's store in few calls: a job has a key of each kind for every rank. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_kaiyuan.cluster.waiting import Waiting

if TYPE_CHECKING:
    import torch

# A call about more keys would keep the server, which has one thread, from the other ranks.
_KEYS_A_CALL = 1024
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.002, 0.25
# Ranks that may ask that often together; the store takes some ten thousand calls a second.
_RANKS_A_PAUSE = 1024


def chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    """Return the keys in pieces that one call may ask for."""
    return [keys[start : start + _KEYS_A_CALL] for start in range(0, len(keys), _KEYS_A_CALL)]


def absent(store: torch.distributed.Store, keys: Sequence[str]) -> list[str]:
    """Return the keys that are not in the store, in order.

    Halves what is incomplete: two calls for each absent key and each halving on the way to it, at most 2 for each key.
    """
    if len(keys) > _KEYS_A_CALL:
        return [key for chunk in chunks(keys) for key in absent(store, chunk)]
    if not keys or store.check(list(keys)):
        return []
    if len(keys) == 1:
        return list(keys)
    middle = len(keys) // 2
    return absent(store, keys[:middle]) + absent(store, keys[middle:])


def read_present(store: torch.distributed.Store, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the values of the keys that are in the store."""
    missing = set(absent(store, keys))
    present = [key for key in keys if key not in missing]
    return {
        key: value for chunk in chunks(present) for key, value in zip(chunk, store.multi_get(list(chunk)), strict=True)
    }


def wait_for(
    store: torch.distributed.Store, keys: Sequence[str], deadline: float, ranks: int = 1, line: Waiting | None = None
) -> bool:
    """Return whether all keys are there before the deadline.

    Asks again and again: the store's own wait is deaf to ctrl-C, and writes warnings when its time is over.

    Args:
        deadline: by `time.monotonic`.
        ranks: how many wait like this one; the more they are, the less often each asks.
        line: looked at now and then.
    """
    pause = _SHORTEST_PAUSE_SECONDS
    longest = _LONGEST_PAUSE_SECONDS * max(1, ranks / _RANKS_A_PAUSE)
    while not store.check(list(keys)):
        if time.monotonic() >= deadline:
            return False
        if line is not None:
            line.look()
        time.sleep(pause)
        pause = min(1.5 * pause, longest)
    return True
