"""Many keys of the job's store in few calls: a job has a key of each kind for every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# A call about more keys would keep the server, which has one thread, from the other ranks.
_KEYS_A_CALL = 1024


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
