"""Damage to JSON that only a schema can find: the file is well formed, and its seal is right.

Each function takes the bytes of a whole file and a seed, and returns other bytes.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import xxhash

from tests.helpers.files.mutations import mutate

_DEEP: Any = 0
for _ in range(60):
    _DEEP = [_DEEP]
# What numbers, texts and containers are replaced by: other types, and values at which arithmetic or a path goes wrong.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e300, float("nan"), float("inf"), float("-inf")),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**400),
    *("", " ", "0", "1", "null", "nan", "\0", "a\0b", "\ud800", "..", "../..", "/", "/etc/passwd", "~", "a/b"),
    *("x" * 300, "x" * 5000, "%s", "{}", "${oc.env:HOME}", "\n", "日本"),
    *([], {}, [None], [0], [-1], [[]], {"": None}, {"a": {}}, _DEEP),
)


def plain(raw: bytes, seed: int) -> bytes:
    """A JSON file without a seal."""
    generator = random.Random(seed)
    if generator.random() < 0.15:
        return mutate(raw, seed)
    return _dumps(damaged(json.loads(raw), generator))


def sealed(raw: bytes, seed: int) -> bytes:
    """A sealed JSON file; its new seal is right."""
    generator = random.Random(seed)
    content = {name: value for name, value in json.loads(raw).items() if name != "seal"}
    if generator.random() < 0.15:
        return _sealed_text(mutate(_dumps(content), seed))
    content = damaged(content, generator)
    return seal(content)


def seal(content: Any) -> bytes:
    """A file with this content, sealed as the project seals files; text is written as ASCII, with escapes."""
    return _sealed_text(_dumps(content)) if isinstance(content, dict) else _dumps(content)


def rows(raw: bytes, seed: int) -> bytes:
    """A file of a JSON value on each line."""
    generator = random.Random(seed)
    if generator.random() < 0.15:
        return mutate(raw, seed)
    lines = raw.splitlines()
    for _ in range(generator.choice((1, 1, 2))):
        at = generator.randrange(len(lines))
        change = generator.random()
        if change < 0.8:
            lines[at] = json.dumps(damaged(json.loads(lines[at]), generator)).encode()
        elif change < 0.9:
            lines.insert(at, lines[generator.randrange(len(lines))])
        elif len(lines) > 1:
            del lines[at]
        try:
            json.loads(lines[at]) if at < len(lines) else None
        except ValueError:
            break
    return b"\n".join(lines) + b"\n"


def damaged(content: Any, generator: random.Random) -> Any:
    """One to three changes of values, keys and lengths."""
    content = copy.deepcopy(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places or generator.random() < 0.01:
            return generator.choice(_VALUES)
        container, key = generator.choice(places)
        generator.choice(_CHANGES)(container, key, generator)
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    left = [content]
    while left:
        one = left.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            left.append(one[key])
    return found


def _replace(container: Any, key: Any, generator: random.Random) -> None:
    container[key] = copy.deepcopy(generator.choice(_VALUES))


def _drop(container: Any, key: Any, generator: random.Random) -> None:
    del container[key]


def _nudge(container: Any, key: Any, generator: random.Random) -> None:
    """A value of the same type, and another one."""
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int):
        container[key] = generator.choice((value + 1, value - 1, -value, 2 * value, value // 2, value + 2**32))
    elif isinstance(value, float):
        container[key] = generator.choice((-value, value * 1e10, value + 1, float("nan")))
    elif isinstance(value, str) and value:
        at = generator.randrange(len(value))
        container[key] = value[:at] + generator.choice(("", "x", "0", "/", value[at:])) + value[at + 1 :]
    elif isinstance(value, list) and value:
        generator.choice((value.pop, value.reverse, lambda: value.append(copy.deepcopy(value[0]))))()
    elif isinstance(value, dict) and value:
        name = generator.choice(list(value))
        value[generator.choice(("", "../x", "other", f"{name}x", "a\0", "\udfff"))] = copy.deepcopy(value[name])


def _wrap(container: Any, key: Any, generator: random.Random) -> None:
    value = container[key]
    container[key] = generator.choice(([value], {"x": value}, str(value)))


def _rename(container: Any, key: Any, generator: random.Random) -> None:
    if isinstance(container, dict):
        container[generator.choice(("", "other", f"{key}s", "../x", "/tmp/x", "a\0"))] = container.pop(key)


def _swap(container: Any, key: Any, generator: random.Random) -> None:
    other = generator.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


_CHANGES = (_replace, _replace, _replace, _drop, _drop, _nudge, _nudge, _wrap, _rename, _swap)


def _dumps(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _sealed_text(text: bytes) -> bytes:
    """Put a seal at the end of an object's text, whatever else it holds."""
    head, brace, tail = text.rpartition(b"}")
    if not brace or not head.strip():
        return text
    comma = b"" if head.strip() == b"{" else b","
    head, tail = head.rstrip() + comma + b'\n "seal": "', b'"\n}' + tail + b"\n"
    return head + b"xxh3:" + xxhash.xxh3_128_hexdigest(head + tail).encode() + tail
