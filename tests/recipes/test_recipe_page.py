"""docs/configuration.md: every field is in it, with a description, and it is of today."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from megatron_kaiyuan.config.hints import sections_of
from megatron_kaiyuan.recipes.classes import CLASSES
from megatron_kaiyuan.recipes.page import page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def leaves(section: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    for name, field in section.model_fields.items():
        inner = [found for found, _ in sections_of(field.annotation)]
        if not inner or field.description:
            yield section, name
        for one in inner:
            yield from leaves(one)


def test_the_page_is_of_today():
    assert PAGE.read_text(encoding="utf-8") == page() + "\n", (
        "write it again: kaiyuan config docs > docs/configuration.md"
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_described(kind: str):
    lacking = [
        f"{section.__name__}.{name}"
        for section, name in leaves(CLASSES[kind])
        if not section.model_fields[name].description
    ]
    assert not lacking
    rows = page().splitlines()
    assert all(any(row.startswith(f"| `{name}` |") for row in rows) for _, name in leaves(CLASSES[kind]))
