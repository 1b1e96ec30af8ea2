"""`kaiyuan config`: what may stand in a recipe, and what does. No logic lives here, only arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.command_line import make_app

app = make_app("Show recipes as they are understood, and what may stand in them.")


@app.command()
def show(
    recipe: Annotated[Path, typer.Argument(help="a recipe of any kind, a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
) -> None:
    """Print a recipe with every field, and where its value is from: default, preset or command line.

    Example: kaiyuan config show mine/train.yaml train.seed=7
    """
    from megatron_kaiyuan.recipes.show import show as as_resolved

    print(as_resolved(recipe, overrides or []))


@app.command()
def schema(
    kind: Annotated[Literal["train", "order", "probes", "mix"], typer.Argument(help="of recipe")] = "train",
) -> None:
    """Print the JSON Schema of a kind of recipe, which editors complete and check recipes with.

    Example: kaiyuan config schema order > order.schema.json

    An editor with a YAML language server reads the line `# yaml-language-server: $schema=order.schema.json`.
    """
    from megatron_kaiyuan.recipes.classes import CLASSES
    from megatron_kaiyuan.recipes.schema import json_schema

    print(json.dumps(json_schema(CLASSES[kind]), indent=1, ensure_ascii=False))


@app.command()
def docs() -> None:
    """Print the page of every field of every recipe, Markdown.

    Example: kaiyuan config docs > configuration.md
    """
    from megatron_kaiyuan.recipes.page import page

    print(page())
