"""JSON Schemas of recipes: right for what the loader takes, and the shipped files are of today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from megatron_kaiyuan.config import parse
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.recipes.classes import CLASSES
from megatron_kaiyuan.recipes.schema import json_schema

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


def test_commands_print_what_the_functions_give():
    done = subprocess.run(
        [sys.executable, "-m", "megatron_kaiyuan.cli", "config", "schema", "order"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json_schema(CLASSES["order"])
