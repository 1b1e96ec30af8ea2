"""JSON Schemas of recipes, for editors: what the file itself may hold, before references and numbers are read.

What the recipe's own check takes, an editor never marks: `${...}` may stand for any value, a number may be in quotes,
a whole one as `numbers.py` reads it, and a truth value may be a word or a number, as pydantic reads it. Wider than the
check where types do not decide: what several fields say together, bounds of a number in quotes, and what a field's own
code checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_kaiyuan.config import Section
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.numbers import is_counted

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"type": "string", "pattern": r"\$\{.*\}"}
_WHOLE = r"([0-9]{1,3}(,[0-9]{3})+|[0-9][0-9_]*)"
_BROKEN = r"([0-9][0-9_]*)?\.[0-9]+"
_TIMES = r"[eE]\+?[0-9]{1,2}"
_UNIT = r"\s*[kKmMbBgGtT]"
# A broken number is whole only by an exponent or a unit.
_WRITTEN = rf"^\s*({_WHOLE}({_TIMES})?|{_BROKEN}{_TIMES})\s*$"
_COUNTED = rf"^\s*({_WHOLE}({_TIMES})?({_UNIT})?|{_BROKEN}({_TIMES}({_UNIT})?|{_UNIT}))\s*$"
_REAL = r"^\s*{sign}([0-9](_?[0-9])*(\.([0-9](_?[0-9])*)?)?|\.[0-9](_?[0-9])*)([eE][+-]?[0-9]+)?\s*$"
_LARGEST = (1 << 63) - 1
_WORDS = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0")


def json_schema(section: type[Section]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of recipes of a class."""
    schema = _widen(section.model_json_schema())
    if "ModelConfig" in schema.get("$defs", {}):
        _take_preset(schema["$defs"]["ModelConfig"])
    return {"$schema": DIALECT, **schema}


def _widen(node: Any, field: str = "") -> Any:
    """Admit references and other forms; leave out titles, which repeat names, and formats that editors lack.

    Args:
        field: the one that the node describes.
    """
    if isinstance(node, list):
        return [_widen(item, field) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: {name: _widen(value, name) for name, value in node[key].items()}
        if key in ("properties", "$defs")
        else _widen(node[key], field)
        for key in node
        if not (key == "title" and isinstance(node[key], str)) and not (key == "format" and node[key] == "path")
    }
    if kept.get("type") not in _OTHER_FORMS and "enum" not in kept:
        return kept
    about = {key: kept.pop(key) for key in ("description", "default") if key in kept}
    others = _OTHER_FORMS[kept["type"]](kept, field) if kept.get("type") in _OTHER_FORMS else []
    return {**about, "anyOf": [kept, *others, _REFERENCE]}


def _whole_numbers(node: dict[str, Any], field: str) -> list[dict[str, Any]]:
    if "maximum" not in node and "exclusiveMaximum" not in node:
        node["maximum"] = _LARGEST
    return [{"type": "string", "pattern": _COUNTED if is_counted(field) else _WRITTEN}]


def _real_numbers(node: dict[str, Any], field: str) -> list[dict[str, Any]]:
    is_positive = max(node.get("minimum", -1), node.get("exclusiveMinimum", -1)) >= 0
    return [{"type": "string", "pattern": _REAL.replace("{sign}", r"\+?" if is_positive else "[+-]?")}]


def _truth_values(node: dict[str, Any], field: str) -> list[dict[str, Any]]:
    words = "|".join("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in _WORDS)
    return [{"enum": [0, 1]}, {"type": "string", "pattern": f"^({words})$"}]


# By the type of JSON, what else pydantic and `numbers.py` read as that type.
_OTHER_FORMS: dict[Any, Callable[[dict[str, Any], str], list[dict[str, Any]]]] = {
    "integer": _whole_numbers,
    "number": _real_numbers,
    "boolean": _truth_values,
}


def _take_preset(network: dict[str, Any]) -> None:
    """Ask for the network's shape only where no preset gives it."""
    given = set.intersection(*(set(preset) for preset in PRESETS.values()))
    required = network.pop("required")
    network["required"] = [name for name in required if name not in given]
    named = {"required": ["preset"], "properties": {"preset": {"not": {"type": "null"}}}}
    network["anyOf"] = [named, {"required": [name for name in required if name in given]}]
