"""A store of many simulated clients: it counts calls and keys, and answers at once."""

from __future__ import annotations

from collections.abc import Sequence


class SimulatedStore:
    """What the project uses of torch's stores.

    Attributes:
        calls: of all clients; on a real network each takes its client a fraction of a millisecond.
        keys: that these calls named.
    """

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.calls = self.keys = 0

    def _count(self, keys: int) -> None:
        self.calls, self.keys = self.calls + 1, self.keys + keys

    def set(self, key: str, value: str) -> None:
        self._count(1)
        self.content[key] = value.encode()

    def get(self, key: str) -> bytes:
        self._count(1)
        return self.content[key]

    def check(self, keys: Sequence[str]) -> bool:
        self._count(len(keys))
        return all(key in self.content for key in keys)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        self._count(len(keys))
        return [self.content[key] for key in keys]

    def add(self, key: str, number: int) -> int:
        self._count(1)
        now = int(self.content.get(key, b"0")) + number
        self.content[key] = str(now).encode()
        return now

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        self._count(1)
        if self.content.get(key, b"").decode() == expected:
            self.content[key] = wanted.encode()
        return self.content[key]
