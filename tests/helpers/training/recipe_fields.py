"""The names of all fields of a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def fields_of(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all fields, those of list entries without their number."""
    names: set[str] = set()
    for name, field in section.model_fields.items():
        kinds = [
            kind for kind in _arguments(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        names |= fields_of(kinds[0], f"{prefix}{name}.") if kinds else {prefix + name}
    return names


def _arguments(annotation: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [annotation, *(found for inner in getattr(annotation, "__args__", ()) for found in _arguments(inner))]
