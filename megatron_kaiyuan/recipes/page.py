"""The page of every field, docs/configuration.md, from the classes that read recipes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from megatron_kaiyuan.config.hints import sections_of
from megatron_kaiyuan.config.kinds import KINDS
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.recipes.classes import CLASSES

_HEAD = """# Every field of every recipe

Written by `kaiyuan config docs` from the descriptions that stand with the fields. `kaiyuan config show RECIPE` prints a
recipe with every field and where its value is from; `kaiyuan config schema KIND` prints the JSON Schema that editors
check a recipe with. The shipped recipes name theirs in their first line (`# yaml-language-server: $schema=...`).

Any field can be changed on the command line, `train.seed=7` or `data.phases[0].peak_lr=1e-3`. Whole numbers may be
written as `1e4`, `10_000` and, where tokens or documents are counted, `80k` or `1.2B`. `${oc.env:NAME,default}` stands
for a variable of the environment, `~` for the home folder. A field without a default has to be given.
"""
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null", "string": "text"}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page() -> str:
    """The whole page, Markdown."""
    return "\n".join([_HEAD, *(line for name in CLASSES for line in _chapter(name))])


def _chapter(kind: str) -> Iterator[str]:
    root = CLASSES[kind]
    words = KINDS[root.__name__]
    yield f"## {words.name.removeprefix('a ').removeprefix('an ').capitalize()}"
    yield f"`{words.command.format(path='RECIPE')}`, schema `{kind}`.\n"
    for place, section in _sections(root):
        yield from _table(place, section)
        if place == "model":
            yield from _presets()


def _sections(root: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, root
    for name, field in root.model_fields.items():
        for inner, is_list in sections_of(field.annotation):
            yield from _sections(inner, f"{place}{'.' if place else ''}{name}{'[]' if is_list else ''}")


def _table(place: str, section: type[BaseModel]) -> Iterator[str]:
    schema = section.model_json_schema()
    if place:
        yield f"### `{place}`"
    yield inspect.cleandoc(section.__doc__ or "") + "\n"
    yield "| field | value | default | meaning |\n|---|---|---|---|"
    for name, field in section.model_fields.items():
        inner = next(sections_of(field.annotation), None)
        if inner is not None and not field.description:
            continue
        kind = "sections, see below" if inner else _kind(schema["properties"][name])
        default = "" if field.is_required() else _default(schema["properties"][name].get("default"))
        yield f"| `{name}` | {kind} | {default} | {_cell(field.description or '')} |"
    yield ""


def _kind(found: dict[str, Any]) -> str:
    if "anyOf" in found:
        return " or ".join(_kind(choice) for choice in found["anyOf"])
    if "enum" in found or "const" in found:
        return ", ".join(f"`{choice}`" for choice in found.get("enum", [found.get("const")]))
    if found.get("format") == "path":
        return "path"
    if found.get("type") == "array":
        return f"list: {_kind(found['items'])}"
    if found.get("type") == "object":
        return f"mapping: name to {_kind(found['additionalProperties'])}"
    limits = [f"{sign} {found[key]:g}" for key, sign in _LIMITS.items() if key in found]
    limits += [f"a multiple of {found['multipleOf']}"] if "multipleOf" in found else []
    return " ".join([_TYPES.get(found.get("type", ""), "value"), ", ".join(limits)]).strip()


def _default(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _presets() -> Iterator[str]:
    yield "| preset | " + " | ".join(f"`{name}`" for name in PRESETS) + " |\n|---|" + "---|" * len(PRESETS)
    for field in dict.fromkeys(name for preset in PRESETS.values() for name in preset):
        yield f"| `{field}` | " + " | ".join(f"{preset.get(field, ''):,}" for preset in PRESETS.values()) + " |"
    yield ""
