"""The kinds of recipes by a short name, and which of them a file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_tools.curriculum.recipe import OrderRecipe
from megatron_kaiyuan.config import RunConfig, Section
from megatron_kaiyuan.config.kinds import KINDS
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.probes.request import ProbeConfig

CLASSES: dict[str, type[Section]] = {"train": RunConfig, "order": OrderRecipe, "probes": ProbeConfig, "mix": MixRecipe}


def class_of(values: Mapping[str, Any], source: str) -> type[Section]:
    """The class of a recipe, by the fields that each recipe of its kind has.

    A recipe that lacks some of them is of the kind that it has most of.

    Raises:
        UserError: it has none of any kind.
    """
    found = {name: len(KINDS[section.__name__].fields & values.keys()) for name, section in CLASSES.items()}
    parts = {name: count / len(KINDS[CLASSES[name].__name__].fields) for name, count in found.items()}
    best = max(parts, key=lambda name: (parts[name], found[name]))
    if not found[best]:
        kinds = ", ".join(f"{kind.name} ({', '.join(sorted(kind.fields))})" for kind in KINDS.values())
        raise UserError(f"{source}: is not a recipe; by its fields it would be {kinds}")
    return CLASSES[best]
