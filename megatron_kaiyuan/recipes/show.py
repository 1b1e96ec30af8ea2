"""A recipe as it is understood: every field with its value, and where the value is from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.config import Section, one_line, parse, read_yaml
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.recipes.classes import class_of

_ABSENT = object()


def show(recipe: Path, overrides: Sequence[str] = ()) -> str:
    """The YAML of a recipe with references and numbers read and all fields written out.

    A comment says where a value is from: `default`, `preset NAME` or `command line`; without one it is the recipe's.
    The text is a recipe itself, with the same meaning.

    Raises:
        UserError: the recipe or an override is wrong.
    """
    raw = read_yaml(recipe, overrides)
    section = parse(class_of(raw, str(recipe)), raw, source=str(recipe))
    changed = {re.sub(r"\[(\d+)\]", r".\1", override.partition("=")[0]) for override in overrides}
    # A recipe may be whole only with its overrides; then only those that name a field are marked.
    with contextlib.suppress(UserError):
        changed |= set(_differing(read_yaml(recipe), raw)) if overrides else set()
    return "\n".join(_lines(section, raw, "", changed))


def _lines(section: Section, raw: Any, place: str, changed: set[str]) -> Iterator[str]:
    written = raw if isinstance(raw, Mapping) else {}
    for name in type(section).model_fields:
        value, inner = getattr(section, name), f"{place}{name}"
        origin = _origin(name, inner, written, changed)
        if isinstance(value, Section):
            yield f"{name}:"
            yield from _indent(_lines(value, written.get(name), f"{inner}.", changed))
        elif isinstance(value, list) and any(isinstance(item, Section) for item in value):
            yield f"{name}:"
            entries = written.get(name)
            for number, item in enumerate(value):
                entry = entries[number] if isinstance(entries, list) else None
                yield from _entry(item, entry, f"{inner}.{number}.", changed)
        else:
            yield f"{name}: {one_line(_plain(value))}{f'  # {origin}' if origin else ''}"


def _differing(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Dotted places of values that are new or others."""
    if isinstance(after, Mapping):
        inner = before if isinstance(before, Mapping) else {}
        for name, value in after.items():
            yield from _differing(inner.get(name, _ABSENT), value, f"{place}{'.' if place else ''}{name}")
    elif isinstance(after, list):
        entries = before if isinstance(before, list) else []
        for number, value in enumerate(after):
            old = entries[number] if number < len(entries) else _ABSENT
            yield from _differing(old, value, f"{place}.{number}")
        if len(after) != len(entries):
            yield place
    if before is _ABSENT or before != after:
        yield place


def _entry(item: Any, raw: Any, place: str, changed: set[str]) -> Iterator[str]:
    if not isinstance(item, Section):
        yield f"  - {one_line(_plain(item))}"
        return
    for number, line in enumerate(_lines(item, raw, place, changed)):
        yield f"  {'- ' if number == 0 else '  '}{line}"


def _origin(name: str, place: str, written: Mapping[str, Any], changed: set[str]) -> str | None:
    if place in changed:
        return "command line"
    if name in written:
        return None
    preset = written.get("preset")
    return f"preset {preset}" if isinstance(preset, str) and name in PRESETS.get(preset, {}) else "default"


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
