"""JSON Schemas of recipes: right for what the loader takes, and the shipped files are of today."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_kaiyuan.config import Section, parse
from megatron_kaiyuan.config.load import read_yaml
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.numbers import read_count
from megatron_kaiyuan.recipes.classes import CLASSES
from megatron_kaiyuan.recipes.schema import _widen, json_schema

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*/*.yaml"))
SMALL = {
    "train": {
        "run_dir": "runs/x",
        "model": {"preset": "kaiyuan-tiny"},
        "data": {"phases": [{"path": "phases/one", "peak_lr": 1e-3}]},
        "train": {"seq_length": 64, "micro_batch_size": 1, "global_batch_size": 4},
    },
    "order": {
        "corpora": {"web": "corpora/web"},
        "phases": [{"name": "one", "order": "shuffle", "datasets": [{"corpus": "web"}]}],
    },
}


def schema_of(path: Path) -> Any:
    """By the line that editors read."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert named != first, f"{path} names no schema"
    return json.loads((path.parent / named).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_are_valid(path: Path):
    schema = schema_of(path)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize("kind", CLASSES)
def test_shipped_schemas_are_of_today(kind: str):
    command = f"kaiyuan config schema {kind} > launch/recipes/schema/{kind}.json"
    shipped = json.loads((ROOT / "launch" / "recipes" / "schema" / f"{kind}.json").read_text(encoding="utf-8"))
    assert shipped == json_schema(CLASSES[kind]), f"write it again: {command}"


def changed(recipe: Any, place: str, value: Any) -> Any:
    recipe = json.loads(json.dumps(recipe))
    *above, last = place.split(".")
    inner = recipe
    for part in above:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    if value is None:
        inner.pop(last)
    else:
        inner[last] = value
    return recipe


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("train", "train.seq_length", "1_024"),
        ("train", "train.seq_length", "${oc.env:LENGTH,64}"),
        ("train", "optimizer.warmup_tokens", "80k"),
        ("train", "optimizer.schedule_tokens", "2T"),
        ("train", "checkpoint.asynchronous", "${oc.env:ASYNC,true}"),
        ("train", "parallel.recompute_granularity", "full"),
        ("order", "phases.0.tokens", "1.2B"),
        ("order", "phases.0.tokens", "all"),
        ("order", "phases.0.datasets.0.repeat", 2.5),
    ],
)
def test_what_the_loader_takes_an_editor_does_not_mark(kind: str, place: str, value: Any):
    recipe = changed(SMALL[kind], place, value)
    jsonschema.validate(recipe, json_schema(CLASSES[kind]))
    if "$" not in str(value):
        parse(CLASSES[kind], recipe, "recipe")


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("train", "train.seq_lenght", 64),
        ("train", "train.seq_length", 0),
        ("train", "train.seq_length", "long"),
        ("train", "train.seq_length", None),
        ("train", "train.precision", "fp61"),
        ("train", "model.preset", None),
        ("train", "model.preset", "kaiyuan-3b"),
        ("train", "data.phases", {}),
        ("train", "checkpoint.asynchronous", "perhaps"),
        ("order", "phases.0.order", "descending"),
        ("order", "phases.0.datasets.0.corpus", None),
        ("order", "corpora", ["web"]),
    ],
)
def test_what_an_editor_marks_the_loader_refuses(kind: str, place: str, value: Any):
    recipe = changed(SMALL[kind], place, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, json_schema(CLASSES[kind]))
    with pytest.raises(UserError):
        parse(CLASSES[kind], recipe, "recipe")


# Of each type, right and wrong, as YAML gives them; what is in quotes is a text.
VALUES: list[Any] = [
    *(None, True, 0, 1, 7, -1, 2.5, 3.0, 1e300, [], {}, [1], ["x"], {"x": 1}, {"x": True}),
    *("", "x", "yes", "NO", "maybe", "4096", "1_000", "1,000", " 7 ", "1e4", "1,5", "1.5", "0.5", "1e-3", "-2"),
    *("1.5.2", "80k", "1.5k", ".5k", "1.5e3", "2 T", "k", "nan", "inf"),
]
# What a field's own code decides, beyond its type.
NOT_TYPES = ("value_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all fields, of the first entry of each list."""
    if at:
        yield at
    inner = node.items() if isinstance(node, dict) else enumerate(node[:1]) if isinstance(node, list) else ()
    for name, value in inner:
        yield from places(value, (*at, name))


def whole(kind: str, recipe: Any) -> Any:
    """The recipe with every field that its class has."""
    return CLASSES[kind].model_validate(recipe).model_dump(mode="json")


def differences(kind: str, step: int) -> list[Any]:
    """Where a recipe with each field in turn changed is taken by one and refused by the other, for its types.

    Args:
        step: each field holds every one of so many values, each time others.
    """
    section, validator = CLASSES[kind], jsonschema.Draft202012Validator(json_schema(CLASSES[kind]))
    base = whole(kind, SMALL[kind])
    assert validator.is_valid(base), [error.message for error in validator.iter_errors(base)]
    found = []
    for number, at in enumerate(places(base)):
        for value in VALUES[number % step :: step]:
            recipe = replaced(base, at, value)
            problems = problems_of(section, recipe)
            if validator.is_valid(recipe):
                wrong = [one for one in problems if one not in NOT_TYPES]
            else:
                wrong = [] if problems else ["accepted"]
            found += [(".".join(map(str, at)), value, one) for one in wrong]
    return found


@pytest.mark.parametrize("kind", SMALL)
def test_schema_and_check_agree_on_types(kind: str) -> None:
    assert differences(kind, step=9) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_schema_and_check_agree_on_every_type(kind: str) -> None:
    """pytest tests/recipes -m slow"""
    assert differences(kind, step=1) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_with_all_fields_are_valid(path: Path) -> None:
    kind = next(name for name in CLASSES if f"schema/{name}.json" in path.read_text(encoding="utf-8"))
    jsonschema.validate(whole(kind, read_yaml(path)), json_schema(CLASSES[kind]))


def replaced(recipe: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copied = recipe.copy()
    copied[at[0]] = replaced(recipe[at[0]], at[1:], value)
    return copied


def problems_of(section: type[Section], recipe: Any) -> list[str]:
    try:
        section.model_validate(recipe)
    except ValidationError as error:
        return [str(one["type"]) for one in error.errors()]
    return []


@given(text=st.from_regex(r"\A[ ]?[0-9.,_]{0,5}([eE][+-]?[0-9]{0,2})?[ ]?[kKTx]?[ ]?\Z"), units=st.booleans())
def test_a_written_number_is_read_where_the_schema_takes_it(text: str, units: bool) -> None:
    node = _widen({"type": "integer"}, "tokens" if units else "seq_length")
    taken = jsonschema.Draft202012Validator(node).is_valid(text)
    try:
        read_count(text, units)
        read = True
    except ValueError as error:
        # Not a matter of form: how large it is, and what a broken number comes to by its exponent or unit.
        read = taken and ("must stay below" in str(error) or re.search("[eEkKT]", text) is not None)
    assert taken == read


def test_commands_print_what_the_functions_give():
    done = subprocess.run(
        [sys.executable, "-m", "megatron_kaiyuan.cli", "config", "schema", "order"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json_schema(CLASSES["order"])
