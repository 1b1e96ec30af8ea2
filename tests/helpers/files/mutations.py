"""Damage to a file's bytes, from a seed: what disks, copies and editors do."""

from __future__ import annotations

import random

# Numbers at which signed, unsigned and 32-bit arithmetic go wrong.
_EDGES = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


def mutate(raw: bytes, seed: int) -> bytes:
    """One to three changes; the result may, rarely, be equal."""
    generator = random.Random(seed)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        raw = bytes(generator.choice(_CHANGES)(bytearray(raw), generator))
    return bytes(raw)


def _flip(raw: bytearray, generator: random.Random) -> bytearray:
    if raw:
        raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
    return raw


def _overwrite(raw: bytearray, generator: random.Random) -> bytearray:
    at, size = generator.randrange(len(raw) + 1), generator.choice((1, 2, 4, 8))
    raw[at : at + size] = generator.randbytes(min(size, len(raw) - at))
    return raw


def _edge(raw: bytearray, generator: random.Random) -> bytearray:
    at = generator.choice((9, 18, 26, generator.randrange(len(raw) + 1)))
    number = generator.choice(_EDGES).to_bytes(8, "little")
    raw[at : at + 8] = number[: max(len(raw) - at, 0)]
    return raw


def _nudge(raw: bytearray, generator: random.Random) -> bytearray:
    """A number in the arrays a little larger or smaller, which only the meaning can tell from a right one."""
    if len(raw) > 34:
        at = 34 + 4 * generator.randrange((len(raw) - 34) // 4 or 1)
        number = int.from_bytes(raw[at : at + 4], "little") + generator.choice((-2, -1, 1, 2))
        raw[at : at + 4] = (number % 2**32).to_bytes(4, "little")[: len(raw) - at]
    return raw


def _cut(raw: bytearray, generator: random.Random) -> bytearray:
    return raw[: generator.randrange(len(raw) + 1)]


def _remove(raw: bytearray, generator: random.Random) -> bytearray:
    at = generator.randrange(len(raw) + 1)
    del raw[at : at + generator.choice((1, 4, 8, 12))]
    return raw


def _insert(raw: bytearray, generator: random.Random) -> bytearray:
    at = generator.randrange(len(raw) + 1)
    raw[at:at] = generator.randbytes(generator.choice((1, 4, 8, 12)))
    return raw


def _swap(raw: bytearray, generator: random.Random) -> bytearray:
    size = generator.choice((1, 4, 8))
    if len(raw) >= 2 * size:
        a, b = sorted(generator.sample(range(len(raw) // size), 2))
        a, b = a * size, b * size
        raw[a : a + size], raw[b : b + size] = raw[b : b + size], raw[a : a + size]
    return raw


def _zero(raw: bytearray, generator: random.Random) -> bytearray:
    at = generator.randrange(len(raw) + 1)
    size = min(generator.choice((8, 64, 4096)), len(raw) - at)
    raw[at : at + size] = bytes(size)
    return raw


_CHANGES = (_flip, _overwrite, _edge, _nudge, _nudge, _cut, _remove, _insert, _swap, _zero)
