"""The kinds of recipes, distinguished by their fields, so that an exchanged one is named at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of recipe.

    Attributes:
        name: with its article.
        fields: those that every recipe of the kind has.
        command: what reads it.
    """

    name: str
    fields: frozenset[str]
    command: str


# By the class that holds the fields: a test compares them with the classes, which other packages define.
KINDS = {
    "RunConfig": Kind("a training recipe", frozenset(["run_dir", "model", "data", "train"]), "kaiyuan train {path}"),
    "OrderRecipe": Kind(
        "an order recipe", frozenset(["corpora", "phases"]), "kaiyuan-data curriculum {path} --output PHASES"
    ),
    "ProbeConfig": Kind(
        "a recipe of probes",
        frozenset(["recipe", "windows", "held_out"]),
        "kaiyuan probe {path} --output RUNS",
    ),
    "MixRecipe": Kind(
        "a recipe of mixtures",
        frozenset(["recipe", "corpora", "held_out", "runs", "tokens", "target_tokens"]),
        "kaiyuan mix {path} --output RUNS",
    ),
}
# Files of other programs, and of this one, that lie beside recipes and corpora; a recipe has none of these pairs.
_OTHERS = (
    (frozenset(["model", "added_tokens"]), "a tokenizer (tokenizer.json)"),
    (frozenset(["model_type", "vocab_size"]), "the configuration of a model (config.json)"),
    (frozenset(["tokenizer_class"]), "the configuration of a tokenizer"),
    (frozenset(["weight_map"]), "the list of a model's weights"),
)
_WINDOWS = frozenset(["windows", "datasets", "by", "seal"])


def another_kind(section: str, values: Mapping[str, Any], path: str) -> str | None:
    """What `values` are, if they are not a recipe of the class `section` but something else of this project's.

    Args:
        path: where they were read.

    Returns:
        The rest of an error: what it is and which command takes it; None: it is not another kind.
    """
    wanted = KINDS.get(section)
    if wanted is None or wanted.fields <= values.keys():
        return None
    if values.keys() >= _WINDOWS:
        return f"is the list of windows that kaiyuan-data quantile wrote, not {wanted.name}; name it there as windows"
    if isinstance(values.get("format"), str) and "seal" in values:
        return f"is a file that this project wrote ({values['format']}), not {wanted.name}; name that"
    for fields, what in _OTHERS:
        if fields <= values.keys():
            return f"is {what}, not {wanted.name}; name a YAML file as in launch/recipes (kaiyuan init DIR writes one)"
    for name, kind in KINDS.items():
        # Of another kind only if it lacks nothing of it: a mistake in a recipe does not make it another one.
        if name != section and kind.fields <= values.keys():
            return f"is {kind.name}, not {wanted.name}; it goes to: {kind.command.format(path=path)}"
    return None
