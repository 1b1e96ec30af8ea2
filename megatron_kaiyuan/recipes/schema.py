"""JSON Schemas of recipes, for editors: what the file itself may hold, before references and numbers are read.

Wider than the recipe's own check in two ways, so that an editor never marks what is right: `${...}` may stand for any
value, and a whole number may be written as `numbers.py` reads it. What several fields together decide is left out.
"""

from __future__ import annotations

from typing import Any

from megatron_kaiyuan.config import Section
from megatron_kaiyuan.config.presets import PRESETS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"type": "string", "pattern": r"\$\{.*\}"}
_NUMBER = {"type": "string", "pattern": r"^[0-9][0-9_.,]*([eE]\+?[0-9]+)?\s*[kKmMbBgGtT]?$"}
_SCALARS = ("integer", "number", "boolean")


def json_schema(section: type[Section]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of recipes of a class."""
    schema = _widen(section.model_json_schema())
    if "ModelConfig" in schema.get("$defs", {}):
        _take_preset(schema["$defs"]["ModelConfig"])
    return {"$schema": DIALECT, **schema}


def _widen(node: Any) -> Any:
    """Admit references and written numbers; leave out titles, which repeat names, and formats that editors lack."""
    if isinstance(node, list):
        return [_widen(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: {name: _widen(value) for name, value in node[key].items()}
        if key in ("properties", "$defs")
        else _widen(node[key])
        for key in node
        if not (key == "title" and isinstance(node[key], str)) and not (key == "format" and node[key] == "path")
    }
    if kept.get("type") not in _SCALARS and "enum" not in kept:
        return kept
    about = {key: kept.pop(key) for key in ("description", "default") if key in kept}
    written = [_NUMBER] if kept.get("type") == "integer" else []
    return {**about, "anyOf": [kept, *written, _REFERENCE]}


def _take_preset(network: dict[str, Any]) -> None:
    """Ask for the network's shape only where no preset gives it."""
    given = set.intersection(*(set(preset) for preset in PRESETS.values()))
    required = network.pop("required")
    network["required"] = [name for name in required if name not in given]
    network["anyOf"] = [{"required": ["preset"]}, {"required": [name for name in required if name in given]}]
