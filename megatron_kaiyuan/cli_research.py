"""`kaiyuan` commands that decide what to train on; `cli.py` adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_kaiyuan.command_line import Force

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")]
Slots = Annotated[int | None, typer.Option(min=1, help="runs at once; default: one a core, or one a device")]


def mix(
    recipe: Annotated[Path, typer.Argument(help="mix.yaml: corpora, held-out text, and what the large run is")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the study")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="only say what would be trained")] = False,
    slots: Slots = None,
    force: Force = False,
) -> None:
    """Train small runs on drawn mixtures, fit how held-out loss follows from the shares, and write the best order.yaml.

    Example: kaiyuan mix mix.yaml --output runs/mix

    The same command goes on where it was stopped; with more runs it trains only the new ones.
    """
    from megatron_kaiyuan.errors import UserError
    from megatron_kaiyuan.research.mixture import run

    if plan:
        print(run.plan(recipe, overrides or []))
        return
    if output is None:
        raise UserError("--output: name the folder of the study, or ask for --plan")
    print(run.mix(recipe, overrides or [], output, slots, force))


def add_commands(app: typer.Typer) -> None:
    """Add them to `kaiyuan`."""
    app.command()(mix)
